package main

// Tags, which a vCenter keeps outside the SOAP API: sessions, categories, tags and what they are attached to, in the
// older form under /rest and the newer one under /api. All is made from the tags of the configured machines.

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

const (
	restSessionHeader = "vmware-api-session-id"
	// What a vCenter takes in one bulk call, and our page of associations (theirs is larger; clients must follow any).
	bulkLimit       = 2000
	associationPage = 500
)

// restObject is a managed object as the REST API names it.
type restObject struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

// tagged is one machine with its tags, each "category/name".
type tagged struct {
	object restObject
	tags   []string
}

type tagService struct {
	// login says whether name and password are right; machines lists what has tags; idle is how long a session lives.
	login    func(user, password string) bool
	machines func() []tagged
	attach   func(object restObject, path string) bool
	idle     func() time.Duration

	mutex    sync.Mutex
	sessions map[string]*restSession
}

// tagServiceOf is the one of a lab.
var tagServiceOf = struct {
	sync.Once
	*tagService
}{}

func init() {
	serve := func(l *Lab, w http.ResponseWriter, r *http.Request) {
		if form := l.mode().TagService; form == "none" || form == "older" && strings.HasPrefix(r.URL.Path, "/api/") {
			http.NotFound(w, r)
			return
		}
		l.tags().ServeHTTP(w, r)
	}
	paths["/rest/"], paths["/api/"] = serve, serve
	stateParts["restSessions"] = func(l *Lab) interface{} {
		service := l.tags()
		service.mutex.Lock()
		defer service.mutex.Unlock()
		return len(service.sessions)
	}
}

func (l *Lab) tags() *tagService {
	tagServiceOf.Do(func() {
		tagServiceOf.tagService = &tagService{
			login:    func(user, password string) bool { return user == l.config.Username && password == l.config.Password },
			machines: l.tagged,
			attach:   l.attachTag,
			idle:     func() time.Duration { return time.Duration(l.mode().SessionSeconds) * time.Second },
			sessions: map[string]*restSession{},
		}
	})
	return tagServiceOf.tagService
}

func (l *Lab) tagged() []tagged {
	var found []tagged
	for _, m := range l.all() {
		m.mu.RLock()
		found = append(found, tagged{object: restObject{Type: "VirtualMachine", ID: m.Moref}, tags: m.Tags})
		m.mu.RUnlock()
	}
	return found
}

// attachTag gives a machine a tag; false if there is no such machine.
func (l *Lab) attachTag(object restObject, path string) bool {
	m := l.machine(types.ManagedObjectReference{Type: object.Type, Value: object.ID})
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !contains(m.Tags, path) {
		m.Tags = append(append([]string{}, m.Tags...), path)
	}
	return l.save(m) == nil
}

func urn(kind, name string) string {
	sum := sha1.Sum([]byte(kind + "\x00" + name))
	h := hex.EncodeToString(sum[:16])
	return fmt.Sprintf("urn:vmomi:InventoryService%s:%s-%s-%s-%s-%s:GLOBAL", kind, h[:8], h[8:12], h[12:16], h[16:20], h[20:])
}

func tagID(path string) string { return urn("Tag", path) }

func categoryID(path string) string {
	category, _ := splitTag(path)
	return urn("Category", category)
}

func splitTag(path string) (string, string) {
	if i := strings.Index(path, "/"); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "tags", path
}

// paths lists the tags there are, each once, in order.
func (t *tagService) paths() []string {
	seen := map[string]bool{}
	for _, machine := range t.machines() {
		for _, path := range machine.tags {
			seen[path] = true
		}
	}
	return sortedKeys(seen)
}

func sortedKeys(set map[string]bool) []string {
	keys := make([]string, 0, len(set))
	for key := range set {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

func (t *tagService) route(a *restAnswer) {
	path := a.path
	id := ""
	for _, collection := range []string{"tagging/category/", "tagging/tag/", "tagging/tag-association/"} {
		if rest := strings.TrimPrefix(path, collection); rest != path {
			path, id = strings.TrimSuffix(collection, "/"), rest
			if !a.newer {
				id = strings.TrimPrefix(id, "id:")
			}
		}
	}
	switch key := a.Request.Method + " " + path + " " + a.action; {
	case key == "GET tagging/category " && id == "":
		ids := map[string]bool{}
		for _, tag := range t.paths() {
			ids[categoryID(tag)] = true
		}
		a.value(http.StatusOK, sortedKeys(ids))
	case key == "GET tagging/category ":
		t.category(a, id)
	case key == "GET tagging/tag " && id == "":
		a.value(http.StatusOK, t.tagIDs(""))
	case key == "GET tagging/tag ":
		t.tag(a, id)
	case key == "POST tagging/tag list-tags-for-category":
		if a.newer {
			var spec struct {
				ID string `json:"category_id"`
			}
			if !a.body(&spec) {
				return
			}
			id = spec.ID
		}
		if t.categoryName(id) == "" {
			a.fail(http.StatusNotFound, "not_found", "no category "+id)
			return
		}
		a.value(http.StatusOK, t.tagIDs(id))
	case path == "associations" && a.Request.Method == http.MethodGet:
		t.associations(a)
	default:
		t.association(a, key, id)
	}
}

func (t *tagService) tagIDs(category string) []string {
	ids := []string{}
	for _, path := range t.paths() {
		if category == "" || categoryID(path) == category {
			ids = append(ids, tagID(path))
		}
	}
	return ids
}

func (t *tagService) categoryName(id string) string {
	for _, path := range t.paths() {
		if categoryID(path) == id {
			name, _ := splitTag(path)
			return name
		}
	}
	return ""
}

func (t *tagService) category(a *restAnswer, id string) {
	name := t.categoryName(id)
	if name == "" {
		a.fail(http.StatusNotFound, "not_found", "no category "+id)
		return
	}
	a.value(http.StatusOK, map[string]interface{}{
		"id": id, "name": name, "description": "", "cardinality": "MULTIPLE", "associable_types": []string{"VirtualMachine"},
		"used_by": []string{},
	})
}

func (t *tagService) tag(a *restAnswer, id string) {
	for _, path := range t.paths() {
		if tagID(path) == id {
			_, name := splitTag(path)
			a.value(http.StatusOK, map[string]interface{}{
				"id": id, "name": name, "description": "", "category_id": categoryID(path), "used_by": []string{},
			})
			return
		}
	}
	a.fail(http.StatusNotFound, "not_found", "no tag "+id)
}

func (t *tagService) objectsOf(tag string) []restObject {
	objects := []restObject{}
	for _, machine := range t.machines() {
		for _, path := range machine.tags {
			if tagID(path) == tag {
				objects = append(objects, machine.object)
				break
			}
		}
	}
	return objects
}

func (t *tagService) tagsOf(object restObject) []string {
	ids := []string{}
	for _, machine := range t.machines() {
		if machine.object == object {
			for _, path := range machine.tags {
				ids = append(ids, tagID(path))
			}
		}
	}
	return ids
}

func (t *tagService) association(a *restAnswer, key, id string) {
	var spec struct {
		Tags    []string     `json:"tag_ids"`
		Objects []restObject `json:"object_ids"`
		Object  restObject   `json:"object_id"`
	}
	asks := strings.TrimPrefix(key, "POST tagging/tag-association ")
	switch {
	case asks == "list-attached-objects" && id != "":
		a.value(http.StatusOK, t.objectsOf(id))
		return
	case asks == "attach" && id != "":
		t.attachTo(a, id)
		return
	case asks == key, asks != "list-attached-objects-on-tags" && asks != "list-attached-tags-on-objects" && asks != "list-attached-tags":
		a.fail(http.StatusNotFound, "operation_not_found", "no operation for "+key)
		return
	case !a.body(&spec):
		return
	}
	if len(spec.Tags) > bulkLimit || len(spec.Objects) > bulkLimit {
		a.fail(http.StatusBadRequest, "invalid_argument", fmt.Sprintf("more than %d identifiers in one call", bulkLimit))
		return
	}
	switch asks {
	case "list-attached-tags":
		a.value(http.StatusOK, t.tagsOf(spec.Object))
	case "list-attached-objects-on-tags":
		answer := []map[string]interface{}{}
		for _, tag := range spec.Tags {
			answer = append(answer, map[string]interface{}{"tag_id": tag, "object_ids": t.objectsOf(tag)})
		}
		a.value(http.StatusOK, answer)
	default:
		known := map[restObject][]string{}
		for _, machine := range t.machines() {
			for _, path := range machine.tags {
				known[machine.object] = append(known[machine.object], tagID(path))
			}
		}
		answer := []map[string]interface{}{}
		for _, object := range spec.Objects {
			if ids := known[object]; len(ids) > 0 {
				answer = append(answer, map[string]interface{}{"object_id": object, "tag_ids": ids})
			}
		}
		a.value(http.StatusOK, answer)
	}
}

// attachTo gives a machine a tag; giving it twice changes nothing.
func (t *tagService) attachTo(a *restAnswer, id string) {
	var spec struct {
		Object restObject `json:"object_id"`
	}
	if !a.body(&spec) {
		return
	}
	for _, path := range t.paths() {
		if tagID(path) == id && t.attach(spec.Object, path) {
			a.value(http.StatusNoContent, nil)
			return
		}
	}
	a.fail(http.StatusNotFound, "not_found", "no such tag or object")
}

// associations gives every pair of tag and object, a page at a time; the marker says where the next one begins.
func (t *tagService) associations(a *restAnswer) {
	start, query := 0, a.Request.URL.Query()
	marker := firstOf(query, "marker", "iterate.marker")
	if marker != "" {
		var err error
		if start, err = strconv.Atoi(strings.TrimPrefix(marker, "page-")); err != nil || start < 0 {
			a.fail(http.StatusBadRequest, "invalid_argument", "the marker is from no earlier page: "+marker)
			return
		}
	}
	pairs := []map[string]interface{}{}
	for _, machine := range t.machines() {
		for _, path := range machine.tags {
			pairs = append(pairs, map[string]interface{}{"tag": tagID(path), "object": machine.object})
		}
	}
	if start > len(pairs) {
		start = len(pairs)
	}
	answer := map[string]interface{}{"associations": pairs[start:], "status": "END_OF_DATA"}
	if end := start + associationPage; end < len(pairs) {
		answer = map[string]interface{}{"associations": pairs[start:end], "status": "READY", "marker": fmt.Sprintf("page-%d", end)}
	}
	a.value(http.StatusOK, answer)
}

func firstOf(query url.Values, names ...string) string {
	for _, name := range names {
		if value := query.Get(name); value != "" {
			return value
		}
	}
	return ""
}
