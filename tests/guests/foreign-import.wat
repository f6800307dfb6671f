;; It wants something that no host provides.
(component (import "acme:store/blobs@1.2.0" (instance)))
