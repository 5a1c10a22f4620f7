package main

import (
	"net/http"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const cookieName = "vmware_soap_session"

// Session is one login. It ends by Logout, after sessionSeconds without a call, by a fault "expire", or with the peer.
type Session struct {
	key  string
	last time.Time
	ctx  *simulator.Context
}

func init() {
	methods["Login"] = login
	methods["Logout"] = logout
	methods["SessionIsActive"] = sessionIsActive
	methods["TerminateSession"] = terminateSession
}

// session finds the live session of a request by its cookie; nil if there is none.
func (l *Lab) session(r *http.Request) *Session {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return nil
	}
	return l.sessionBy(cookie.Value)
}

func (l *Lab) sessionBy(key string) *Session {
	l.mu.Lock()
	found := l.sessions[key]
	seconds := l.modes.SessionSeconds
	expired := found != nil && seconds > 0 && time.Since(found.last) > time.Duration(seconds)*time.Second
	if found != nil && !expired {
		found.last = time.Now()
	}
	l.mu.Unlock()
	if expired {
		l.endSession(found)
		return nil
	}
	return found
}

// allowed says whether a request for a file may pass: it has a live session, or the password.
func (l *Lab) allowed(r *http.Request) bool { return l.session(r) != nil || l.basic(r) }

func (l *Lab) basic(r *http.Request) bool {
	name, password, ok := r.BasicAuth()
	return ok && name == l.config.Username && password == l.config.Password
}

func (l *Lab) openSession(name string, r *http.Request) *Session {
	now := time.Now().UTC()
	key := uuidFor("session", now.String(), r.RemoteAddr, time.Now().String())
	one := &Session{key: key, last: now, ctx: newContext(name, key)}
	user := &one.ctx.Session.UserSession
	user.LoginTime, user.LastActiveTime, user.Locale, user.MessageLocale = now, now, "en", "en"
	user.ExtensionSession, user.IpAddress, user.UserAgent = types.NewBool(false), r.RemoteAddr, r.UserAgent()
	l.mu.Lock()
	l.sessions[key] = one
	l.mu.Unlock()
	return one
}

// endSession forgets a session with its views and collectors.
func (l *Lab) endSession(one *Session) {
	l.mu.Lock()
	_, known := l.sessions[one.key]
	delete(l.sessions, one.key)
	for token, page := range l.pages {
		if page.session == one {
			delete(l.pages, token)
		}
	}
	l.mu.Unlock()
	if known {
		simulator.Map.SessionManager().Logout(one.ctx, &types.Logout{})
	}
}

func (l *Lab) endSessions() int {
	l.mu.Lock()
	all := make([]*Session, 0, len(l.sessions))
	for _, one := range l.sessions {
		all = append(all, one)
	}
	l.mu.Unlock()
	for _, one := range all {
		l.endSession(one)
	}
	return len(all)
}

func login(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.Login)
	if req.UserName != c.lab.config.Username || req.Password != c.lab.config.Password {
		c.lab.note("login of %q refused", req.UserName)
		return nil, faultOf(&types.InvalidLogin{}, "Cannot complete login due to an incorrect user name or password.")
	}
	if c.session != nil {
		return nil, faultOf(&types.InvalidLogin{}, "The session is already logged in.")
	}
	one := c.lab.openSession(req.UserName, c.request)
	// vCenter puts the value in quotes.
	c.header.Add("Set-Cookie", cookieName+"=\""+one.key+"\"; Path=/; HttpOnly; Secure;")
	c.lab.note("login of %q", req.UserName)
	return &types.LoginResponse{Returnval: one.ctx.Session.UserSession}, nil
}

func logout(c *call) (interface{}, *soap.Fault) {
	c.lab.endSession(c.session)
	return &types.LogoutResponse{}, nil
}

func sessionIsActive(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.SessionIsActive)
	found := c.lab.sessionBy(req.SessionID)
	active := found != nil && found.ctx.Session.UserName == req.UserName
	return &types.SessionIsActiveResponse{Returnval: active}, nil
}

func terminateSession(c *call) (interface{}, *soap.Fault) {
	for _, key := range c.body.(*types.TerminateSession).SessionId {
		found := c.lab.sessionBy(key)
		if found == nil {
			return nil, faultOf(&types.NotFound{}, "There is no such session")
		}
		c.lab.endSession(found)
	}
	return &types.TerminateSessionResponse{}, nil
}
