// Package verify compares tables of two databases without moving their rows: each server computes, under a snapshot that the caller
// chose, the number of rows and two sums of 64-bit hashes over the text of every row. Sums don't depend on the order of rows, so
// neither physical order nor collation matter, and large tables are added up from ctid ranges read side by side.
//
// A row's text is ROW(columns…)::text, the columns named in the source's order, generated ones included. It tells NULL from the empty
// string, 1.0 from 1.00 and 0 from -0, and means the same on every server version from 13 on under the pinned settings.
// hashtextextended hashes bytes under the "C" collation and has been the same function since PostgreSQL 11; it differs between
// little- and big-endian machines only.
//
// Where the sums differ, the rows are narrowed down by buckets of the key's hash; only rows of unequal buckets are fetched, as key and
// hashes. So memory stays bounded for tables of any size, here and (by spilling aggregates) there, and no order of keys
// has to agree. Tables without a key are compared as multisets of row hashes.
//
// Columns that only the target has aren't looked at; the catalog fingerprint (package schema) is what tells of them.
//
// Authority: none. Nothing is written on either side. A difference is true for the two snapshots only: compare at a moment at which both
// sides ought to be equal (the freeze, or a source snapshot that the target has just reached).
//
// How to carry a type whose text isn't canonical: give its column another expression in rowText, and add it to types_test.go with a
// pair of values that must be equal and a pair that must not.
package verify
