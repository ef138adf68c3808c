module fntrace/watchdog

go 1.19
