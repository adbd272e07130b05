#!/usr/bin/env bash
# `ray up`, a search as a job, `ray down`, on two nodes of this machine behind a real sshd.
#
# Run by test_on_premise.py in namespaces of its own: network (loopback alone, all ports free),
# mounts (Ray's folder, the home folder) and processes, which all end with it. Each node has its
# own of the latter two: `ray stop` ends every Ray that it sees, as on a real machine.
set -euo pipefail
folder=$1 bin=$2 repository=$3
said() { echo "== $* after $SECONDS s"; }

ip link set lo up
ip route add default dev lo  # Ray asks the kernel which address packets would leave from
mkdir -p /tmp/ray /run/sshd "$folder"/home/.ray "$folder"/home/morel "$folder"/runs
mount -t tmpfs none /tmp/ray
sed "s#^root:.*#root:x:0:0:root:$folder/home:/bin/bash#" /etc/passwd > "$folder/passwd"
mount --bind "$folder/passwd" /etc/passwd
export HOME=$folder/home
ln -s "$(dirname "$bin")" "$HOME/morel/.venv"

ssh-keygen -q -t ed25519 -N "" -f "$folder/key"
ssh-keygen -q -t ed25519 -N "" -f "$folder/host"
cat > "$folder/sshd_config" <<END
HostKey $folder/host
AuthorizedKeysFile $folder/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
Subsystem sftp internal-sftp
END
for address in 127.0.0.1 127.0.0.2; do
  unshare --pid --mount --fork --mount-proc --kill-child bash -c \
    "mount -t tmpfs none /tmp/ray; exec /usr/sbin/sshd -D -f '$folder/sshd_config' \
     -o ListenAddress=$address" &
done

export PATH=$bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
ray get-auth-token --generate > /dev/null
cd "$repository"
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false python -m mlflow server --workers 1 --host 127.0.0.1 \
  --port 5000 --backend-store-uri "sqlite:///$folder/server.db" \
  --artifacts-destination "$folder/artifacts" > "$folder/server.log" 2>&1 &

# What drivers need of MLflow lies on the head alone.
ssh="-i $folder/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
echo MLFLOW_TRACKING_URI=http://127.0.0.1:5000 > "$folder/driver.env"
scp -q $ssh "$folder/driver.env" root@127.0.0.1:driver.env
ray up --yes --no-config-cache "$folder/on_premise.yaml"
said "head is up"
export RAY_ADDRESS=127.0.0.1:6379
joined() { [[ "$(ray status 2>&1)" =~ /[1-9][0-9.]*\ CPU ]]; }
for _ in $(seq 60); do joined && break; sleep 2; done
joined
said "worker has joined"
ray exec "$folder/on_premise.yaml" "ray status"
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
ray job submit --working-dir . -- python -m orchestrator tune smoke name=hill \
  storage_path="$folder/runs" overrides.model.width=4 overrides.training.epochs=2
said "search is done"
python -m orchestrator status hill storage_path="$folder/runs" --json > "$folder/status.json"

# A notice of AWS's kind reaches the poller on the worker, and Ray hears of it.
python - <<'END' &
import json, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Metadata(BaseHTTPRequestHandler):
    def do_PUT(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"t")
    def do_GET(self):
        end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))
        self.send_response(200); self.end_headers()
        self.wfile.write(json.dumps({"action": "terminate", "time": end}).encode())
HTTPServer(("127.0.0.1", 8000), Metadata).serve_forever()
END
ssh $ssh root@127.0.0.2 \
  "python '$repository/deploy/spot_notice.py' --metadata http://127.0.0.1:8000 \
   --lock '$folder/lock'"
python - > "$folder/drained" <<'END'
import os, time
from ray._raylet import GcsClientOptions, GlobalStateAccessor
accessor = GlobalStateAccessor(GcsClientOptions.create(os.environ["RAY_ADDRESS"], None, True, True))
accessor.connect()
for _ in range(60):  # a drained node that has nothing to do ends at once
    gone = [node for node in accessor.get_node_table() if not node["Alive"]]
    if gone:
        break
    time.sleep(0.5)
print(*(f"{node['NodeManagerAddress']}: {node['DeathReasonMessage']}" for node in gone))
END
said "drained: $(cat "$folder/drained")"

ray down --yes "$folder/on_premise.yaml"
said "cluster is down"
left() { ps -eo stat=,comm= | grep -v '^Z' | grep -cE 'gcs_server|raylet' || true; }
for _ in $(seq 90); do [ "$(left)" = 0 ] && break; sleep 1; done
said "$(left) processes of Ray are left"
[ "$(left)" = 0 ]
