;; What a build for wasm32-wasip2 looks like.
(component
  (import "wasi:cli/environment@0.2.3" (instance))
  (import "wasi:clocks/wall-clock@0.2.3" (instance))
  (import "wasi:io/poll@0.2.3" (instance))
  (import "wasi:random/random@0.2.3" (instance))
  (import "wasi:filesystem/types@0.2.3" (instance)))
