;; A state machine of another version of the world.
(component
  (instance $machine)
  (export "lockstep:fsm/state-machine@0.3.0" (instance $machine)))
