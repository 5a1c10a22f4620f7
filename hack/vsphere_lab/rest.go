package main

// The REST API as such: its sessions, its two forms of answers, and where what is asked for goes.

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

type restSession struct {
	user            string
	created, active time.Time
}

// expire ends all sessions, as a restart of the service does.
func (t *tagService) expire() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.sessions = map[string]*restSession{}
}

// end forgets the session of one request.
func (t *tagService) end(r *http.Request) {
	id, _ := t.session(r)
	t.mutex.Lock()
	defer t.mutex.Unlock()
	delete(t.sessions, id)
}

// restAnswer is one request on its way, in the words of the older or the newer API.
type restAnswer struct {
	http.ResponseWriter
	*http.Request
	newer bool
	// path is what stands behind the API's prefix; action what the query asks to do.
	path, action string
}

func (a *restAnswer) value(status int, value interface{}) {
	a.ResponseWriter.Header().Set("Content-Type", "application/json")
	a.ResponseWriter.WriteHeader(status)
	if value == nil && (a.newer || status == http.StatusNoContent) {
		return
	}
	if !a.newer {
		value = map[string]interface{}{"value": value}
	}
	_ = json.NewEncoder(a.ResponseWriter).Encode(value)
}

func (a *restAnswer) fail(status int, kind, message string) {
	a.ResponseWriter.Header().Set("Content-Type", "application/json")
	a.ResponseWriter.WriteHeader(status)
	messages := []map[string]interface{}{{"id": "lab." + kind, "default_message": message, "args": []string{}}}
	var body interface{} = map[string]interface{}{
		"type": "com.vmware.vapi.std.errors." + kind, "value": map[string]interface{}{"messages": messages},
	}
	if a.newer {
		body = map[string]interface{}{"error_type": strings.ToUpper(kind), "messages": messages}
	}
	_ = json.NewEncoder(a.ResponseWriter).Encode(body)
}

func (a *restAnswer) body(into interface{}) bool {
	if err := json.NewDecoder(a.Request.Body).Decode(into); err != nil {
		a.fail(http.StatusBadRequest, "invalid_argument", "the body is not the JSON this call takes: "+err.Error())
		return false
	}
	return true
}

// ServeHTTP answers everything under /rest/ and /api/.
func (t *tagService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := &restAnswer{ResponseWriter: w, Request: r}
	switch {
	case strings.HasPrefix(r.URL.Path, "/rest/com/vmware/cis/"):
		a.path, a.action = strings.TrimPrefix(r.URL.Path, "/rest/com/vmware/cis/"), r.URL.Query().Get("~action")
	case strings.HasPrefix(r.URL.Path, "/api/cis/"):
		a.newer, a.path, a.action = true, strings.TrimPrefix(r.URL.Path, "/api/cis/"), r.URL.Query().Get("action")
	case r.URL.Path == "/api/session":
		a.newer, a.path = true, "session"
	case r.URL.Path == "/api/vcenter/tagging/associations":
		a.newer, a.path = true, "associations"
	default:
		a.newer = strings.HasPrefix(r.URL.Path, "/api/")
		a.fail(http.StatusNotFound, "not_found", "no service at "+r.URL.Path)
		return
	}
	if a.path == "session" && r.Method == http.MethodPost && a.action == "" {
		t.open(a)
		return
	}
	id, session := t.session(r)
	if session == nil {
		a.fail(http.StatusUnauthorized, "unauthenticated", "This method requires authentication.")
		return
	}
	if a.path == "session" {
		t.ownSession(a, id, session)
		return
	}
	t.route(a)
}

func (t *tagService) session(r *http.Request) (string, *restSession) {
	id := r.Header.Get(restSessionHeader)
	if cookie, err := r.Cookie(restSessionHeader); id == "" && err == nil {
		id = cookie.Value
	}
	t.mutex.Lock()
	defer t.mutex.Unlock()
	found := t.sessions[id]
	if found == nil {
		return id, nil
	}
	now := time.Now()
	if idle := t.idle(); idle > 0 && now.Sub(found.active) > idle {
		delete(t.sessions, id)
		return id, nil
	}
	found.active = now
	return id, found
}

func (t *tagService) open(a *restAnswer) {
	user, password, given := a.Request.BasicAuth()
	if !given || !t.login(user, password) {
		a.ResponseWriter.Header().Set("WWW-Authenticate", `Basic realm="vCenter"`)
		a.fail(http.StatusUnauthorized, "unauthenticated", "Authentication required.")
		return
	}
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		a.fail(http.StatusInternalServerError, "error", err.Error())
		return
	}
	id, now := hex.EncodeToString(raw), time.Now()
	t.mutex.Lock()
	t.sessions[id] = &restSession{user: user, created: now, active: now}
	t.mutex.Unlock()
	http.SetCookie(a.ResponseWriter, &http.Cookie{Name: restSessionHeader, Value: id, Path: "/", Secure: true, HttpOnly: true})
	status := http.StatusOK
	if a.newer {
		status = http.StatusCreated
	}
	a.value(status, id)
}

func (t *tagService) ownSession(a *restAnswer, id string, session *restSession) {
	switch {
	case a.Request.Method == http.MethodDelete:
		t.mutex.Lock()
		delete(t.sessions, id)
		t.mutex.Unlock()
		if a.newer {
			a.value(http.StatusNoContent, nil)
			return
		}
		a.ResponseWriter.WriteHeader(http.StatusOK)
	case a.newer && a.Request.Method == http.MethodGet, !a.newer && a.action == "get":
		form := "2006-01-02T15:04:05.000Z"
		t.mutex.Lock()
		value := map[string]string{
			"user": session.user, "created_time": session.created.UTC().Format(form), "last_accessed_time": session.active.UTC().Format(form),
		}
		t.mutex.Unlock()
		a.value(http.StatusOK, value)
	default:
		a.fail(http.StatusMethodNotAllowed, "operation_not_found", a.Request.Method+" is no operation of a session")
	}
}
