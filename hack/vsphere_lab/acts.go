package main

import (
	"encoding/json"
	"fmt"
	"net/http"
)

func controlAct(l *Lab, _ http.ResponseWriter, r *http.Request) (interface{}, error) {
	var act map[string]interface{}
	if err := json.NewDecoder(r.Body).Decode(&act); err != nil {
		return nil, err
	}
	what := fmt.Sprint(act["what"])
	do := acts[what]
	if do == nil {
		return nil, fmt.Errorf("nothing is called %q", what)
	}
	return do(l, act)
}

var acts = map[string]func(*Lab, map[string]interface{}) (interface{}, error){}
