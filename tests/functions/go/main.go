// The tests' function in Go; ../README.md has the protocol.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

type rawBody struct {
	Text    string `json:"text"`
	Length  int    `json:"length"`
	Chunked bool   `json:"chunked"`
}

type step struct {
	URL     string            `json:"url"`
	Mode    string            `json:"mode"`
	Plan    json.RawMessage   `json:"plan"`
	Body    *rawBody          `json:"body"`
	Headers map[string]string `json:"headers"`
	Forward []string          `json:"forward"`
	Fresh   bool              `json:"fresh"`
}

type plan struct {
	Pad   int    `json:"pad"`
	Calls []step `json:"calls"`
}

// The transport without a proxy from the environment; connections are kept alive and pooled as usual.
var client = &http.Client{
	Timeout:   30 * time.Second,
	Transport: &http.Transport{MaxIdleConnsPerHost: 64},
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func header(h http.Header, name string) interface{} {
	if values := h.Values(name); len(values) > 0 {
		return strings.Join(values, ", ")
	}
	return nil
}

func call(ownID string, index int, s step, inbound http.Header) map[string]interface{} {
	id := fmt.Sprintf("%s.%d", ownID, index)
	answer, err := request(ownID, id, s, inbound)
	if err != nil {
		return map[string]interface{}{"id": id, "error": err.Error()}
	}
	return answer
}

func request(ownID, id string, s step, inbound http.Header) (map[string]interface{}, error) {
	body, contentType := []byte(s.Plan), "application/json"
	if s.Body != nil {
		body = bytes.Repeat([]byte(s.Body.Text), s.Body.Length/len(s.Body.Text)+1)[:s.Body.Length]
		contentType = "application/octet-stream"
	} else if body == nil {
		body = []byte("{}")
	}
	var reader io.Reader = bytes.NewReader(body)
	if s.Body != nil && s.Body.Chunked {
		reader = io.MultiReader(reader) // hides the length, so that net/http sends it chunked
	}
	r, err := http.NewRequest("POST", s.URL+"/"+id, reader)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("X-True-Parent", ownID)
	for name, value := range s.Headers {
		r.Header.Set(name, value)
	}
	for _, name := range s.Forward {
		if value := inbound.Get(name); value != "" {
			r.Header.Set(name, value)
		}
	}
	used := client
	if s.Fresh {
		r.Close = true
		used = &http.Client{Timeout: client.Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	}
	response, err := used.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	var answer map[string]interface{}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, err
	}
	answer["sent"] = digest(body)
	answer["status"] = response.StatusCode
	if via := response.Header.Get("X-Via"); via != "" {
		answer["via"] = map[string]interface{}{
			"function":    via,
			"traceparent": header(response.Header, "X-Via-Traceparent"),
		}
	}
	return answer, nil
}

func handle(w http.ResponseWriter, r *http.Request) {
	id := strings.TrimLeft(r.URL.Path, "/")
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var p plan
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "application/json" && len(body) > 0 {
		if err := json.Unmarshal(body, &p); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	children := make([]map[string]interface{}, len(p.Calls))
	var parallel sync.WaitGroup
	for i := range p.Calls {
		if p.Calls[i].Mode != "par" {
			parallel.Wait()
			children[i] = call(id, i, p.Calls[i], r.Header)
			continue
		}
		parallel.Add(1)
		go func(i int) {
			defer parallel.Done()
			children[i] = call(id, i, p.Calls[i], r.Header)
		}(i)
	}
	parallel.Wait()
	w.Header().Set("Content-Type", "application/json")
	err = json.NewEncoder(w).Encode(map[string]interface{}{
		"id":          id,
		"true_parent": header(r.Header, "X-True-Parent"),
		"traceparent": header(r.Header, "Traceparent"),
		"lang":        "go",
		"function":    os.Getenv("K_SERVICE"),
		"body":        map[string]interface{}{"length": len(body), "sha256": digest(body)},
		"pad":         strings.Repeat("x", p.Pad),
		"children":    children,
	})
	if err != nil {
		log.Printf("answer %s: %v", id, err)
	}
}

func main() {
	begin := time.Now()
	if start, err := time.ParseDuration(os.Getenv("START")); err == nil {
		time.Sleep(start)
	}
	server := &http.Server{
		Addr:    net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT")),
		Handler: http.HandlerFunc(handle),
	}
	ended := make(chan struct{})
	if os.Getenv("ONCE") != "" {
		server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handle(w, r)
			go func() {
				// Waits until the answer is out.
				server.Shutdown(context.Background())
				fmt.Printf("lived %d us\n", time.Since(begin).Microseconds())
				close(ended)
			}()
		})
	}
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-ended
}
