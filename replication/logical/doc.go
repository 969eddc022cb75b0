// Package logical captures the changes of one Postgres database through a logical replication slot and the pgoutput plugin
// ("Logical Decoding" and "Streaming Replication Protocol" in the PostgreSQL documentation).
//
// The server holds back write-ahead log from the slot's confirmed position on; that position only moves when Acknowledge says that
// the destination has made something durable. A Source decodes messages into batches of whole transactions: it hands over what it has
// as soon as somebody receives, and lets a batch grow up to its bounds while nobody does. A transaction over the bounds comes in
// pieces. Tuples are passed through undecoded, in text form, and lie where they were
// received until the batch is released.
//
// A slot is made once. One that is lost, invalidated or further ahead than the destination's position is never replaced silently:
// changes would be missing.
//
// How to add a message type: decode it in decode.go with a fuzz seed, handle it in builder.go.
package logical
