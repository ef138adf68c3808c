// The callee of `cargo xtask edges`; ../../README.md has the protocol.
package main

import (
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

type call struct {
	id, parent string
}

var (
	mutex sync.Mutex
	calls []call
)

func handle(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Path[1:]
	switch id {
	case "ready":
		return
	case "log":
		mutex.Lock()
		seen := calls
		calls = nil
		mutex.Unlock()
		for _, call := range seen {
			fmt.Fprintln(w, call.id, call.parent)
		}
		return
	}
	mutex.Lock()
	calls = append(calls, call{id, r.Header.Get("X-True-Parent")})
	mutex.Unlock()
	if r.Header.Get("X-Fail") != "" {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	time.Sleep(time.Millisecond + rand.N(2*time.Millisecond))
	fmt.Fprint(w, id)
}

func main() {
	address := net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT"))
	log.Fatal(http.ListenAndServe(address, http.HandlerFunc(handle)))
}
