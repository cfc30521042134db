package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// setText sets a leaf from the text of a flag or an environment variable.
// Lists are separated by commas.
func setText(v reflect.Value, s string) error {
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		return u.UnmarshalText([]byte(s))
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(s, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is no whole number of %d bits", s, v.Type().Bits())
		}
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(s, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is no whole number from 0 of %d bits", s, v.Type().Bits())
		}
		v.SetUint(n)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return fmt.Errorf("%q is no number", s)
		}
		v.SetFloat(f)
	case reflect.Slice:
		return setList(v, s)
	default:
		return fmt.Errorf("cannot be set to %q", s)
	}
	return nil
}

func setList(v reflect.Value, s string) error {
	list := reflect.MakeSlice(v.Type(), 0, 4)
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		e := reflect.New(v.Type().Elem()).Elem()
		if err := setText(e, part); err != nil {
			return err
		}
		list = reflect.Append(list, e)
	}
	v.Set(list)
	return nil
}

// setTOML sets a leaf from a decoded TOML value.
func setTOML(v reflect.Value, x any) error {
	if s, ok := x.(string); ok {
		if k := v.Kind(); k == reflect.String || isText(v) {
			return setText(v, s)
		}
		return fmt.Errorf("want %s, not the string %q", kindName(v), s)
	}
	switch x := x.(type) {
	case bool:
		if v.Kind() == reflect.Bool {
			v.SetBool(x)
			return nil
		}
	case int64:
		switch v.Kind() { //nolint:exhaustive // a number fits these alone
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
			reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
			reflect.Float32, reflect.Float64:
			return setText(v, strconv.FormatInt(x, 10))
		}
	case float64:
		if v.CanFloat() {
			v.SetFloat(x)
			return nil
		}
	case []any:
		if v.Kind() == reflect.Slice {
			list := reflect.MakeSlice(v.Type(), 0, len(x))
			for _, el := range x {
				e := reflect.New(v.Type().Elem()).Elem()
				if err := setTOML(e, el); err != nil {
					return err
				}
				list = reflect.Append(list, e)
			}
			v.Set(list)
			return nil
		}
	}
	return fmt.Errorf("want %s", kindName(v))
}

func isText(v reflect.Value) bool {
	_, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr())
	return ok
}

func kindName(v reflect.Value) string {
	switch {
	case isText(v) && v.Kind() == reflect.Int64 && strings.Contains(v.Type().Name(), "Duration"):
		return `a duration, such as "30s"`
	case isText(v) && v.Kind() == reflect.Int64:
		return `a size, such as "64MiB"`
	case v.Kind() == reflect.String || isText(v):
		return "a string"
	case v.Kind() == reflect.Bool:
		return "true or false"
	case v.CanInt() || v.CanUint():
		return "a whole number"
	case v.CanFloat():
		return "a number"
	case v.Kind() == reflect.Slice:
		return "a list"
	case v.Kind() == reflect.Struct:
		return "a table"
	default:
		return v.Kind().String()
	}
}

// literal prints a leaf as TOML.
func literal(v reflect.Value) string {
	if m, ok := reflect.TypeAssert[encoding.TextMarshaler](v.Addr()); ok {
		b, err := m.MarshalText()
		if err == nil {
			return strconv.Quote(string(b))
		}
	}
	switch v.Kind() {
	case reflect.String:
		return strconv.Quote(v.String())
	case reflect.Float32, reflect.Float64:
		s := strconv.FormatFloat(v.Float(), 'f', -1, 64)
		if !strings.Contains(s, ".") {
			s += ".0"
		}
		return s
	case reflect.Slice:
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = literal(v.Index(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	default:
		return fmt.Sprint(v.Interface())
	}
}

var errNotStruct = errors.New("config: the destination must be a pointer to a struct")
