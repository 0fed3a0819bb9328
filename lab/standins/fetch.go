package main

import (
	"fmt"
	"net/http"
	"os"
	"time"
)

const fetchTimeout = 10 * time.Second

// fetch asks an address once and prints nothing but the status, as `curl --write-out %{http_code}` does: 000 for none.
func fetch(url string) int {
	client := &http.Client{Timeout: fetchTimeout}
	response, err := client.Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		fmt.Println("000")
		return 1
	}
	defer response.Body.Close()
	fmt.Println(response.StatusCode)
	return 0
}
