"""Splits rendered manifests for kubernetes-validate and checks what schemas do not.

manifests.py RENDERED RULES: writes RENDERED/builtin/*.yaml without custom resources (their schemas come
with their operators), RENDERED/settings/*.toml out of ConfigMaps, and RULES/rules.yaml and rules_test.yaml for promtool.
"""

import json
import pathlib
import shutil
import sys
import tomllib

import yaml

CUSTOM = {
    "monitoring.coreos.com/v1": {"ServiceMonitor", "PrometheusRule"},
    "keda.sh/v1alpha1": {"ScaledObject"},
}
MONITORING = pathlib.Path("deploy/kustomize/components/monitoring")


def is_custom(doc, where):
    kinds = CUSTOM.get(doc["apiVersion"])
    if kinds is None:
        return False
    assert doc["kind"] in kinds, f"{where}: unknown {doc['kind']}"
    return True


def check_workload(doc, where, configs):
    """Each volume's ConfigMap is rendered too, and the grace period covers linger and drain."""
    spec = doc["spec"]["template"]["spec"] if doc["kind"] == "Deployment" else doc["spec"]
    names = [v["configMap"]["name"] for v in spec.get("volumes", []) if "configMap" in v]
    for name in names:
        assert name in configs, f"{where}: no ConfigMap {name}"
        server = tomllib.loads(configs[name]["tidegate.toml"])["server"]
        needed = server["linger_seconds"] + server["drain_seconds"]
        grace = spec["terminationGracePeriodSeconds"]
        assert needed < grace, f"{where}: {needed} s do not fit into {grace} s"


def check(docs, where, settings):
    configs = {d["metadata"]["name"]: d["data"] for d in docs if d["kind"] == "ConfigMap"}
    pods = []
    for doc in docs:
        if doc["kind"] in ("Deployment", "Pod"):
            check_workload(doc, where, configs)
        if doc["kind"] == "Deployment":
            pods.append(doc["spec"]["template"]["metadata"]["labels"])
            wanted = doc["spec"]["selector"]["matchLabels"].items()
            assert wanted <= pods[-1].items(), f"{where}: selector"
    for name, data in configs.items():
        for file, text in data.items():
            if file.endswith(".toml"):
                (settings / f"{where}-{name}.toml").write_text(text)
            if file.endswith(".json"):
                json.loads(text)
    return pods


def rules_for_promtool(target):
    spec = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
    target.mkdir(parents=True, exist_ok=True)
    (target / "rules.yaml").write_text(yaml.safe_dump(spec))
    shutil.copy("deploy/tests/rules_test.yaml", target)
    alerts = {rule["alert"] for group in spec["groups"] for rule in group["rules"]}
    tests = yaml.safe_load(pathlib.Path("deploy/tests/rules_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    fired = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    assert alerts == fired, f"alerts that no test fires: {alerts ^ fired}"
    assert alerts == silent, f"alerts that no test keeps silent: {alerts ^ silent}"


def targets_reach_the_rules(rendered):
    docs = yaml.safe_load_all((rendered / "helm-everything.yaml").read_text())
    rule = next(doc for doc in docs if doc and doc["kind"] == "PrometheusRule")
    text = json.dumps(rule)
    assert "> 0.5 # [slo] ttft_seconds" in text and "> 0.02 # [slo] tpot_seconds" in text


def three_gateways(rendered, file):
    """Three gateways contend for a Lease that they may write, and reach each other at the exchange's port."""
    docs = [doc for doc in yaml.safe_load_all((rendered / file).read_text()) if doc]
    one = lambda kind: next(doc for doc in docs if doc["kind"] == kind)
    deployment = one("Deployment")
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    config = next(d["data"]["tidegate.toml"] for d in docs if "tidegate.toml" in d.get("data", {}))
    gateways = tomllib.loads(config)["gateways"]
    lease, port = gateways["kubernetes"]["lease"], int(gateways["listen"].rsplit(":", 1)[1])
    assert deployment["spec"]["replicas"] == 3 and pod["automountServiceAccountToken"], file
    rules = [r for d in docs if d["kind"] == "Role" for r in d["rules"] if r["resources"] == ["leases"]]
    writable = [r["verbs"] for r in rules if r.get("resourceNames") == [lease]]
    assert writable == [["get", "update"]] and ["create"] in [r["verbs"] for r in rules], f"{file}: {rules}"
    assert "POD_IP" in [env["name"] for env in container["env"]], file
    assert port in [p["containerPort"] for p in container["ports"]], file
    peers = [r for r in one("NetworkPolicy")["spec"]["ingress"] if r["ports"][0]["port"] == port]
    assert [set(p) for r in peers for p in r["from"]] == [{"podSelector"}], f"{file}: {peers}"
    volume = next(v for v in pod["volumes"] if v["name"] == "gateways")
    items = [i["path"] for s in volume["projected"]["sources"] for i in s["secret"]["items"]]
    mount = next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == "gateways")
    named = {gateways["token_file"], *(gateways["tls"][key] for key in ("cert", "key", "client_ca_file"))}
    assert named == {f"{mount}/{path}" for path in items}, f"{file}: {named}"
    assert one("PodDisruptionBudget")["spec"]["minAvailable"] == 2, file


def main():
    rendered, rules = map(pathlib.Path, sys.argv[1:3])
    builtin, settings = rendered / "builtin", rendered / "settings"
    builtin.mkdir()
    settings.mkdir()
    for path in sorted(rendered.glob("*.yaml")):
        docs = [doc for doc in yaml.safe_load_all(path.read_text()) if doc]
        assert docs, f"{path}: empty"
        check(docs, path.name, settings)
        kept = [doc for doc in docs if not is_custom(doc, path.name)]
        (builtin / path.name).write_text(yaml.safe_dump_all(kept))
    targets_reach_the_rules(rendered)
    for file in ("helm-ha.yaml", "kustomize-ha.yaml"):
        three_gateways(rendered, file)
    rules_for_promtool(rules)


main()
