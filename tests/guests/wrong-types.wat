;; The right names, all with a type that none of them has.
(component
  (core module $m (func (export "f") (result i32) i32.const 7))
  (core instance $i (instantiate $m))
  (func $f (result u32) (canon lift (core func $i "f")))
  (instance $machine
    (export "describe" (func $f)) (export "init" (func $f)) (export "apply" (func $f))
    (export "query" (func $f)) (export "snapshot" (func $f)) (export "restore" (func $f)))
  (export "lockstep:fsm/state-machine@0.2.0" (instance $machine)))
