module fntrace/function

go 1.19
