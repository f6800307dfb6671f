;; A core module of the right shape. The test puts a memory and the body of `describe` in place.
(module
  (memory (export "memory") $MEMORY)
  (func $describe (export "lockstep:fsm/state-machine@0.1.0#describe") (result i32) $DESCRIBE)
  (func (export "lockstep:fsm/state-machine@0.1.0#init")
    (param i64 i64 i64 i64 i32 i32) (result i32) unreachable)
  (func (export "lockstep:fsm/state-machine@0.1.0#apply")
    (param i64 i64 i64 i64 i32 i32) (result i32) unreachable)
  (func (export "lockstep:fsm/state-machine@0.1.0#query")
    (param i64 i64 i64 i64 i32 i32) (result i32) unreachable)
  (func (export "lockstep:fsm/state-machine@0.1.0#snapshot") (result i32) unreachable)
  (func (export "lockstep:fsm/state-machine@0.1.0#restore")
    (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32) unreachable)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024))
