// The function of `cargo xtask edges` in Go; ../../README.md has the protocol.
package main

import (
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	callee = os.Getenv("CALLEE")
	fresh  = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	pool   = make(chan func())
)

func request(client *http.Client, id string, fail bool) error {
	r, err := http.NewRequest("GET", fmt.Sprintf("%s/%016x", callee, rand.Uint64()), nil)
	if err != nil {
		return err
	}
	r.Header.Set("X-True-Parent", id)
	if fail {
		r.Header.Set("X-Fail", "1")
	}
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}

func call(id string) error {
	return request(http.DefaultClient, id, false)
}

func times(count int, work func() error) error {
	for range count {
		if err := work(); err != nil {
			return err
		}
	}
	return nil
}

func carryOut(id, shape string, w http.ResponseWriter) error {
	switch shape {
	case "seq":
		return times(3, func() error { return call(id) })
	case "par":
		var wait sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			wait.Add(1)
			go func() {
				defer wait.Done()
				errs[i] = call(id)
			}()
		}
		wait.Wait()
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
		return nil
	case "errgroup":
		var group errgroup.Group
		for range 4 {
			group.Go(func() error { return call(id) })
		}
		return group.Wait()
	case "timer":
		return times(2, func() error {
			time.Sleep(time.Millisecond + rand.N(9*time.Millisecond))
			return call(id)
		})
	case "pool":
		return times(2, func() error {
			done := make(chan error)
			pool <- func() { done <- call(id) }
			return <-done
		})
	case "after":
		go func() {
			time.Sleep(5 * time.Millisecond)
			if err := call(id); err != nil {
				log.Print(err)
			}
		}()
		return call(id)
	case "retry":
		if request(http.DefaultClient, id, true) != nil {
			return call(id)
		}
		return fmt.Errorf("the first attempt did not fail")
	case "stream":
		return times(3, func() error {
			fmt.Fprintln(w, "a chunk")
			w.(http.Flusher).Flush()
			return call(id)
		})
	case "fresh":
		return times(2, func() error { return request(fresh, id, false) })
	}
	return fmt.Errorf("no such shape")
}

func handle(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Path[1:]
	if id == "ready" {
		return
	}
	if err := carryOut(id, r.FormValue("shape"), w); err != nil {
		log.Printf("%s: %v", id, err)
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	fmt.Fprintln(w, "done")
}

func main() {
	for range 8 {
		go func() {
			for work := range pool {
				work()
			}
		}()
	}
	address := net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT"))
	log.Fatal(http.ListenAndServe(address, http.HandlerFunc(handle)))
}
