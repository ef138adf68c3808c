// The tests' function as a Lambda handler; ../README.md has the events.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

type event struct {
	Calls []string `json:"calls"`
	Sleep float64  `json:"sleep"`
	Fail  bool     `json:"fail"`
	Exit  bool     `json:"exit"`
}

type answer struct {
	InvocationID string            `json:"invocation_id"`
	Pid          int               `json:"pid"`
	Children     []json.RawMessage `json:"children"`
}

var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}

func post(url string) (json.RawMessage, error) {
	response, err := client.Post(url, "application/json", strings.NewReader("{}"))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var answer json.RawMessage
	return answer, json.NewDecoder(response.Body).Decode(&answer)
}

func handle(ctx context.Context, event event) (answer, error) {
	time.Sleep(time.Duration(event.Sleep * float64(time.Second)))
	known, _ := lambdacontext.FromContext(ctx)
	result := answer{InvocationID: known.AwsRequestID, Pid: os.Getpid(), Children: []json.RawMessage{}}
	for _, url := range event.Calls {
		child, err := post(url)
		if err != nil {
			return result, err
		}
		result.Children = append(result.Children, child)
	}
	if event.Fail {
		return result, errors.New("as the event asked")
	}
	if event.Exit {
		os.Exit(3)
	}
	return result, nil
}

func main() {
	lambda.Start(handle)
}
