#!/usr/bin/env bash
# Prometheus and Grafana beside a run, so that Ray's dashboard has a filled Metrics page and Grafana the run's own.
#
#   launchers/monitoring/start.sh runs/latest          # until Ctrl-C; the run may go on, begin later, or have ended
#
# Needs `prometheus` on PATH, and `grafana` (or `grafana-server`) for the pictures; both are others' packages. Both
# listen on loopback, at the ports where Ray's dashboard looks for them. Their data stays in RUN/monitoring.
#
#   PROMETHEUS_PORT=9090  GRAFANA_PORT=3000            another port wants RAY_PROMETHEUS_HOST=http://localhost:PORT and
#                                                      RAY_GRAFANA_HOST likewise where the run, or Ray, is started
#   RAY_SESSION=/tmp/ray/session_latest                Ray's folder, where RAY_TMPDIR or --temp-dir moved it
#   GRAFANA_HOME=/usr/share/grafana                    where Grafana's package lies
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf 'monitoring: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; }

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
esac
(($# == 1)) || fail "one run folder, not $#: launchers/monitoring/start.sh runs/latest"
[[ -d $1 ]] || fail "$1: no such folder; give the --run-dir of a run"
command -v prometheus >/dev/null || fail "prometheus is not on PATH: install Prometheus (https://prometheus.io/download)"

RUN=$(cd "$1" && pwd)
PROMETHEUS_PORT=${PROMETHEUS_PORT:-9090} GRAFANA_PORT=${GRAFANA_PORT:-3000}
RAY_SESSION=${RAY_SESSION:-${RAY_TMPDIR:-${TMPDIR:-/tmp}}/ray/session_latest}
GRAFANA_HOME=${GRAFANA_HOME:-/usr/share/grafana}
for port in PROMETHEUS_PORT GRAFANA_PORT; do
  if ! [[ ${!port} =~ ^[0-9]{1,5}$ ]] || ((10#${!port} < 1 || 10#${!port} > 65535)); then
    fail "$port=${!port}: expected a port"
  fi
  if (exec 3<>"/dev/tcp/127.0.0.1/${!port}") 2>/dev/null; then
    fail "port ${!port} is in use, maybe by another start.sh: end what listens there, or set $port"
  fi
done

DATA=$RUN/monitoring
mkdir -p "$DATA"
cp "$HERE/prometheus.yml" "$HERE/alerts.yml" "$DATA/"
# Followed as they are rewritten: by Ray when a node comes or goes, by the run when it starts.
ln -sfn "$RAY_SESSION/prom_metrics_service_discovery.json" "$DATA/ray.json"
ln -sfn "$RUN/logs/scrape.json" "$DATA/run.json"

trap 'jobs -p | xargs -r kill 2>/dev/null; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

prometheus --config.file="$DATA/prometheus.yml" --storage.tsdb.path="$DATA/prometheus" \
  --web.listen-address="127.0.0.1:$PROMETHEUS_PORT" >"$DATA/prometheus.log" 2>&1 &
say "Prometheus: http://localhost:$PROMETHEUS_PORT (log: $DATA/prometheus.log)"

GRAFANA=()
if command -v grafana >/dev/null; then
  GRAFANA=(grafana server)
elif command -v grafana-server >/dev/null; then
  GRAFANA=(grafana-server)
fi
if ((${#GRAFANA[@]})); then
  export PROMETHEUS_URL="http://127.0.0.1:$PROMETHEUS_PORT" DASHBOARDS=$HERE/dashboards
  export RAY_DASHBOARDS=$RAY_SESSION/metrics/grafana/dashboards
  # Ray's dashboard shows Grafana's panels in frames, to whoever sees the dashboard.
  GF_SECURITY_ALLOW_EMBEDDING=true GF_AUTH_ANONYMOUS_ENABLED=true GF_AUTH_ANONYMOUS_ORG_ROLE=Viewer \
    GF_ANALYTICS_REPORTING_ENABLED=false GF_ANALYTICS_CHECK_FOR_UPDATES=false \
    GF_SERVER_HTTP_ADDR=127.0.0.1 GF_SERVER_HTTP_PORT=$GRAFANA_PORT GF_PATHS_DATA=$DATA/grafana \
    GF_PATHS_LOGS=$DATA/grafana GF_PATHS_PROVISIONING=$HERE/provisioning \
    "${GRAFANA[@]}" --homepath "$GRAFANA_HOME" >"$DATA/grafana.log" 2>&1 &
  say "Grafana:    http://localhost:$GRAFANA_PORT/d/miles-lite (log: $DATA/grafana.log)"
else
  say "grafana is not on PATH: no pictures (https://grafana.com/grafana/download)"
fi

wait -n || true
fail "one of them has ended: $(tail -n 3 "$DATA"/*.log 2>/dev/null | tr '\n' ' ')"
