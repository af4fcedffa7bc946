#!/bin/sh
# The five emoji most like a text: sh examples/search.sh TEXT [URL]
set -eu
curl --silent --show-error --fail --get --data-urlencode "q=$1" --data k=5 \
	"${2:-http://127.0.0.1:8001}/-/clip/search/emoji/emoji.json"
