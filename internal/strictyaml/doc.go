// Package strictyaml reads a YAML file into Go structs and tells everything that is wrong with it at once: unknown keys (with the
// one that was probably meant), keys given twice, values of the wrong kind, references to secrets that don't exist, each with its
// path and line. yaml.Unmarshal stops at the first kind of mistake, so an operator would meet them one start at a time.
//
// A struct's fields are matched by their `yaml:"name"` tag. Supported are structs, pointers to structs, slices, maps with string keys, strings, booleans,
// integers, time.Duration ("30s") and every encoding.TextUnmarshaler. References are expanded in scalar values after parsing, so a
// secret may contain any character without quoting and can never change the file's structure.
//
// How to add a kind of value: give it UnmarshalText with an error that ends in what to write instead.
package strictyaml
