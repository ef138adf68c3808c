//go:build tools

// Package emulator pins AWS's runtime interface emulator; `cargo xtask functions` builds it.
package emulator

import _ "github.com/aws/aws-lambda-runtime-interface-emulator/cmd/aws-lambda-rie"
