// Answers each request; with UPSTREAM, by what the server there answers.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	upstream := os.Getenv("UPSTREAM")
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if upstream == "" {
			io.WriteString(w, "hello from behind\n")
			return
		}
		reply, err := client.Get("http://127.0.0.1:" + upstream + r.URL.Path)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer reply.Body.Close()
		io.Copy(w, reply.Body)
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
