;; A core module of the right shape whose outcomes are as large as its memory allows: an answer of
;; 60 MiB and empty ones after it; a million outcomes for a single command; three lists in one place.
(module
  (memory (export "memory") 1024)
  ;; info: name, version, two formats
  (data (i32.const 64) "\80\00\00\00\07\00\00\00\90\00\00\00\01\00\00\00\01\00\00\00\01\00\00\00")
  (data (i32.const 128) "aliases")
  (data (i32.const 144) "1")
  ;; an answer: ok, at 0, of 60 MiB
  (data (i32.const 512) "\00\00\00\00\00\00\00\00\00\00\c0\03")
  (func (export "lockstep:fsm/state-machine@0.2.0#describe") (result i32) i32.const 64)
  ;; 256 and on is all zeros: ok
  (func (export "lockstep:fsm/state-machine@0.2.0#init")
    (param i64 i64 i64 i64 i32 i32) (result i32) i32.const 256)
  ;; outcomes, at 16: ends, data, rejected, omitted
  (func (export "lockstep:fsm/state-machine@0.2.0#apply")
    (param i64 i64 i64 i64 i32 i32 i32 i32) (result i32) (local $at i32) (local $left i32)
    (i32.store (i32.const 16) (i32.const 1048576))
    (i32.store (i32.const 24) (i32.const 0))
    (i32.store (i32.const 28) (i32.const 62914560))
    (i32.store (i32.const 32) (i32.const 1048576))
    (i32.store (i32.const 40) (i32.const 1048576))
    (i32.store (i32.const 44) (i32.const 0))
    (if (i32.eq (local.get 5) (i32.const 1))
      (then (i32.store (i32.const 20) (i32.const 1000000)) (return (i32.const 16))))
    (if (i32.eq (local.get 5) (i32.const 2))
      (then (i32.store (i32.const 36) (i32.const 1000000))))
    (i32.store (i32.const 20) (local.get 5))
    (local.set $at (i32.const 1048576))
    (local.set $left (local.get 5))
    (block
      (loop
        (br_if 1 (i32.eqz (local.get $left)))
        (i32.store (local.get $at) (i32.const 62914560))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br 0)))
    i32.const 16)
  (func (export "lockstep:fsm/state-machine@0.2.0#query")
    (param i64 i64 i64 i64 i32 i32) (result i32) i32.const 512)
  (func (export "lockstep:fsm/state-machine@0.2.0#snapshot") (result i32) i32.const 256)
  (func (export "lockstep:fsm/state-machine@0.2.0#restore")
    (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32) i32.const 256)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024))
