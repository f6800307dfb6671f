;; A core module: what rustc makes before anybody componentises it.
(module (func (export "apply")))
