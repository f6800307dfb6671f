;; The right name, and nothing behind it.
(component
  (instance $machine)
  (export "lockstep:fsm/state-machine@0.2.0" (instance $machine)))
