// A watchdog after OpenFaaS's of-watchdog, which is not to be had as a Go module: with mode=http it starts the function
// once and is a proxy before it, with mode=streaming it starts it for each request, which comes on standard input.
package main

import (
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"
)

func main() {
	function := strings.Fields(os.Getenv("fprocess"))
	var handler http.Handler
	if os.Getenv("mode") == "http" {
		upstream, err := url.Parse(os.Getenv("upstream_url"))
		if err != nil {
			log.Fatal(err)
		}
		start(function)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if connection, err := net.Dial("tcp", upstream.Host); err == nil {
				connection.Close()
				break
			} else if time.Now().After(deadline) {
				log.Fatal(err)
			}
		}
		handler = httputil.NewSingleHostReverseProxy(upstream)
	} else {
		handler = http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
			command := exec.Command(function[0], function[1:]...)
			command.Stdin, command.Stdout, command.Stderr = request.Body, response, os.Stderr
			if err := command.Run(); err != nil {
				http.Error(response, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	log.Fatal(http.ListenAndServe(os.Getenv("listen"), handler))
}

func start(function []string) {
	command := exec.Command(function[0], function[1:]...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if err := command.Start(); err != nil {
		log.Fatal(err)
	}
}
