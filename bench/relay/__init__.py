"""`make bench-relay`: voicegate's relay beside a Go relay, a C forwarder and coturn, in one run."""
