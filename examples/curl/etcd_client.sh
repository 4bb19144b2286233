#!/usr/bin/env bash
# podkv through etcd's API as JSON, with curl alone. Keys and values are base64, numbers are strings.
#
#     ./etcd_client.sh      put, get, txn, watch, lease, lock, each checked
set -euo pipefail

# Any of the nodes will do.
endpoint=${PODKV_ENDPOINTS:-127.0.0.1:2379}
endpoint=http://${endpoint%%,*}
prefix="examples/curl-$$-$RANDOM/"

base64_of() { printf %s "$prefix$1" | base64 -w 0; }
value() { printf %s "$1" | base64 -w 0; }
call() { curl --silent --show-error --fail-with-body --max-time 10 "$endpoint/v3/$1" --data "$2"; }
expect() { # NAME ANSWER PATTERN
    [[ $2 =~ $3 ]] || { echo "$1: expected $3 in: $2" >&2; exit 1; }
    echo "$1: ok"
}

greeting=$(base64_of greeting)
call kv/put "{\"key\": \"$greeting\", \"value\": \"$(value hello)\"}" >/dev/null
expect "put and get" "$(call kv/range "{\"key\": \"$greeting\"}")" "\"value\":\"$(value hello)\""

# Compare and swap: if it still says hello.
swap="{\"compare\": [{\"key\": \"$greeting\", \"target\": \"VALUE\", \"result\": \"EQUAL\", \"value\": \"$(value hello)\"}],
       \"success\": [{\"requestPut\": {\"key\": \"$greeting\", \"value\": \"$(value goodbye)\"}}]}"
expect "compare and swap" "$(call kv/txn "$swap")" '"succeeded":true'
# A field that is false, or 0, is left out.
expect "compare and swap, again" "$(call kv/txn "$swap" | sed 's/"succeeded":true/BAD/')" '^[^B]*$'

# One JSON value a line, for as long as you read. From revision 1 on, so both puts are there already.
watch="{\"create_request\": {\"key\": \"$greeting\", \"start_revision\": \"1\"}}"
exec 3< <(exec curl --silent --no-buffer --max-time 10 "$endpoint/v3/watch" --data "$watch")
watching=$!
events=$(grep --max-count 1 "$(value goodbye)" <&3)
kill "$watching"
expect "watch" "$events" "\"value\":\"$(value goodbye)\""

lease=$(call lease/grant '{"TTL": "10"}' | sed 's/.*"ID":"\([0-9]*\)".*/\1/')
call kv/put "{\"key\": \"$(base64_of instances/a)\", \"value\": \"$(value 10.0.0.1)\", \"lease\": \"$lease\"}" >/dev/null
expect "lease: keep alive" "$(call lease/keepalive "{\"ID\": \"$lease\"}")" '"TTL":"10"'

# Waits until the lock is free, and holds it for as long as the lease lives.
lock=$(call lock/lock "{\"name\": \"$(base64_of nightly)\", \"lease\": \"$lease\"}")
expect "lock" "$lock" '"key":"'
held=$(sed 's/.*"key":"\([^"]*\)".*/\1/' <<<"$lock")
call lock/unlock "{\"key\": \"$held\"}" >/dev/null

call lease/revoke "{\"ID\": \"$lease\"}" >/dev/null
expect "lease: its keys go with it" "$(call kv/range "{\"key\": \"$(base64_of instances/a)\"}" | sed 's/"kvs"/BAD/')" '^[^B]*$'
call kv/deleterange "{\"key\": \"$greeting\"}" >/dev/null
