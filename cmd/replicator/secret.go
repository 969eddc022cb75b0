package main

import "log/slog"

// Secret is a value that must never be shown: a token, or a URL that may carry a password. Whatever prints it, in any format and
// however deep inside other values, shows only whether it is set; Reveal is the one way to the value. It is kept behind a pointer
// because fmt prints the text of unexported fields without asking their methods.
type Secret struct{ value *string }

const redacted = "(secret)"

// NewSecret returns a secret of the given value; the empty one is not set.
func NewSecret(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{&value}
}

// Reveal returns the value, for handing it to whom it is meant for.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsSet tells whether there is a value.
func (s Secret) IsSet() bool { return s.value != nil }

// String implements fmt.Stringer.
func (s Secret) String() string {
	if !s.IsSet() {
		return ""
	}
	return redacted
}

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return "Secret(" + s.String() + ")" }

// MarshalText implements encoding.TextMarshaler, and with it JSON's and YAML's.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON implements json.Marshaler.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Secret) UnmarshalText(b []byte) error {
	*s = NewSecret(string(b))
	return nil
}
