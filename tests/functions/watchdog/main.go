// A watchdog after OpenFaaS's two, which are not to be had as Go modules: with mode=http it starts the function once and is
// a proxy before it, with mode=streaming it starts it for each request, which comes on standard input. With mode=classic
// it does so, as the classic watchdog does, in a goroutine of its own, once it has read all of the request.
package main

import (
	"io"
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
	} else if os.Getenv("mode") == "classic" {
		handler = http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
			body, err := io.ReadAll(request.Body)
			if err != nil {
				http.Error(response, err.Error(), http.StatusBadRequest)
				return
			}
			command := exec.Command(function[0], function[1:]...)
			command.Stdin, command.Stderr = strings.NewReader(string(body)), os.Stderr
			var output []byte
			done := make(chan error)
			go func() {
				var err error
				output, err = command.Output()
				done <- err
			}()
			if err := <-done; err != nil {
				http.Error(response, err.Error(), http.StatusInternalServerError)
				return
			}
			response.Write(output)
		})
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
