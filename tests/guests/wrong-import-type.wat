;; It imports our interface with a function the interface does not have.
(component
  (import "lockstep:fsm/host@0.2.0" (instance (export "now" (func (result u64)))))
  (instance $machine)
  (export "lockstep:fsm/state-machine@0.2.0" (instance $machine)))
