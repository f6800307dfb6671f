;; The right name, and nothing behind it.
(component
  (instance $machine)
  (export "lockstep:fsm/state-machine@0.1.0" (instance $machine)))
