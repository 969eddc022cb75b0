package apply

import (
	"fmt"

	"replicator/replication"
)

// textOID is pg_type's fixed id of text.
const textOID = 25

// textParameter gives a value as a text-format parameter; nil is NULL.
func textParameter(v replication.Value) ([]byte, error) {
	switch v.Kind {
	case replication.Null:
		return nil, nil
	case replication.Text:
		if v.Data == nil {
			return []byte{}, nil
		}
		return v.Data, nil
	}
	return nil, fmt.Errorf("a value of kind %q can't be written", byte(v.Kind))
}
