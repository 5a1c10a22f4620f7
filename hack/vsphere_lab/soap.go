package main

import (
	"bytes"
	"fmt"
	"log"
	"net/http"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// Envelopes of answers, and copies of values by way of XML: the simulator keeps its own encoder to itself.

type envelope struct {
	XMLName xml.Name    `xml:"soapenv:Envelope"`
	Enc     string      `xml:"xmlns:soapenc,attr"`
	Env     string      `xml:"xmlns:soapenv,attr"`
	XSD     string      `xml:"xmlns:xsd,attr"`
	XSI     string      `xml:"xmlns:xsi,attr"`
	Body    interface{} `xml:"soapenv:Body"`
}

type faultBody struct {
	XMLName xml.Name `xml:"soapenv:Fault"`
	Code    string   `xml:"faultcode"`
	String  string   `xml:"faultstring"`
	Detail  struct {
		Fault *faultDetail
	} `xml:"detail"`
}

type faultDetail struct {
	Fault types.AnyType
}

// MarshalXML names the element after the fault's type, as vCenter does.
func (d *faultDetail) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	kind := reflect.TypeOf(d.Fault).Elem().Name()
	start.Name.Local = kind + "Fault"
	start.Attr = append(start.Attr,
		xml.Attr{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"},
		xml.Attr{Name: xml.Name{Local: "xsi:type"}, Value: kind})
	return e.EncodeElement(d.Fault, start)
}

// answer is a response with its namespace; Name replaces the type's own where that is not the method's.
type answer struct {
	Response interface{}
}

// MarshalXML writes <MethodResponse xmlns="urn:vim25">.
func (a *answer) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	if err := e.EncodeToken(start); err != nil {
		return err
	}
	name := reflect.TypeOf(a.Response).Elem().Name()
	element := xml.StartElement{Name: xml.Name{Space: "urn:vim25", Local: name}}
	if err := e.EncodeElement(a.Response, element); err != nil {
		return err
	}
	return e.EncodeToken(start.End())
}

func envelopeOf(body interface{}) ([]byte, error) {
	var out bytes.Buffer
	out.WriteString(xml.Header)
	err := xml.NewEncoder(&out).Encode(&envelope{
		Enc:  "http://schemas.xmlsoap.org/soap/encoding/",
		Env:  "http://schemas.xmlsoap.org/soap/envelope/",
		XSD:  "http://www.w3.org/2001/XMLSchema",
		XSI:  "http://www.w3.org/2001/XMLSchema-instance",
		Body: body,
	})
	return out.Bytes(), err
}

func sendFault(w http.ResponseWriter, fault *soap.Fault) {
	body := &faultBody{Code: fault.Code, String: fault.String}
	body.Detail.Fault = &faultDetail{fault.Detail.Fault}
	out, err := envelopeOf(struct{ Fault *faultBody }{body})
	if err != nil {
		log.Printf("a fault cannot be encoded: %s", err)
	}
	send(w, http.StatusInternalServerError, out)
}

func sendAnswer(w http.ResponseWriter, response interface{}) {
	out, err := envelopeOf(&answer{response})
	if err != nil {
		log.Printf("%T cannot be encoded: %s", response, err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	send(w, http.StatusOK, out)
}

func send(w http.ResponseWriter, status int, out []byte) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.Header().Set("Content-Length", fmt.Sprint(len(out)))
	w.WriteHeader(status)
	_, _ = w.Write(out)
}

// typeOf finds the Go type of an XML type, also where the client binds vim25 to a prefix of its own.
func typeOf(name string) (reflect.Type, bool) {
	find := types.TypeFunc()
	if kind, ok := find(name); ok {
		return kind, ok
	}
	if _, rest, ok := strings.Cut(name, ":"); ok {
		return find(rest)
	}
	return nil, false
}

// toXML writes a value of the API as text, fromXML reads it back; wrapped in an element of their own.
func toXML(value interface{}) string {
	var out bytes.Buffer
	encoder := xml.NewEncoder(&out)
	if err := encoder.EncodeElement(value, xml.StartElement{
		Name: xml.Name{Local: "value"},
		Attr: []xml.Attr{{Name: xml.Name{Local: "xmlns:xsi"}, Value: "http://www.w3.org/2001/XMLSchema-instance"},
			{Name: xml.Name{Local: "xmlns:xsd"}, Value: "http://www.w3.org/2001/XMLSchema"}},
	}); err != nil {
		panic(fmt.Sprintf("%T: %s", value, err))
	}
	return out.String()
}

func fromXML(text string, value interface{}) error {
	decoder := xml.NewDecoder(strings.NewReader(text))
	decoder.TypeFunc = typeOf
	return decoder.Decode(value)
}

// copyOf fills dst with a deep copy of src; both are pointers to the same type.
func copyOf(src, dst interface{}) {
	reflect.ValueOf(dst).Elem().Set(deep(reflect.ValueOf(src).Elem()))
}

func deep(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Ptr:
		if v.IsNil() {
			return v
		}
		out := reflect.New(v.Type().Elem())
		out.Elem().Set(deep(v.Elem()))
		return out
	case reflect.Interface:
		if v.IsNil() {
			return v
		}
		return deep(v.Elem())
	case reflect.Slice:
		if v.IsNil() {
			return v
		}
		out := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := 0; i < v.Len(); i++ {
			out.Index(i).Set(deep(v.Index(i)))
		}
		return out
	case reflect.Struct:
		out := reflect.New(v.Type()).Elem()
		out.Set(v) // what is not exported, as in a time, is a value
		for i := 0; i < v.NumField(); i++ {
			if field := out.Field(i); field.CanSet() {
				field.Set(deep(v.Field(i)))
			}
		}
		return out
	}
	return v
}

// faultOf makes a SOAP fault.
func faultOf(fault types.BaseMethodFault, message string, args ...interface{}) *soap.Fault {
	f := &soap.Fault{Code: "ServerFaultCode", String: fmt.Sprintf(message, args...)}
	f.Detail.Fault = fault
	return f
}
