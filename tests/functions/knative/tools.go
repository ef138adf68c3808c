//go:build tools

// Package knative pins Knative's queue-proxy; `cargo xtask platforms` builds it.
package knative

import _ "knative.dev/serving/cmd/queue"
