//! The files of `deploy/`, as the programs they are for read them.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;
use tandem_testkit::{has_program, run_python_in, scratch, web_python};

use crate::{Running, Server, free_ports, get, repository, wait_for};

/// Runs a check that must succeed, and answers what it says.
fn check(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// A command whose program may be in a folder that is not in everybody's path.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

#[test]
fn haproxy_reads_its_file() {
    if !has_program("haproxy") {
        return;
    }
    let folder = scratch("haproxy");
    let haproxy = || {
        let mut command = program("haproxy");
        command.env("TANDEM_PROXY_SOCKET", folder.path().join("socket"));
        command.arg("-c").arg("-f").arg(repository("deploy/haproxy/haproxy.cfg"));
        command
    };
    for dns in [None, Some("localhost:8080")] {
        let mut command = haproxy();
        command.envs(dns.map(|name| ("TANDEM_WORKERS_DNS", name)));
        let said = check(&mut command);
        assert!(!said.contains("WARNING"), "{said}");
    }
}

#[test]
fn nginx_reads_its_file() {
    if !has_program("nginx") {
        return;
    }
    let folder = scratch("nginx");
    let mut nginx = program("nginx");
    check(
        nginx
            .arg("-t")
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(repository("deploy/nginx/tandem.conf")),
    );
}

#[test]
fn prometheus_reads_its_files() {
    if !has_program("promtool") {
        return;
    }
    let said = check(
        program("promtool")
            .args(["check", "config"])
            .arg(repository("deploy/prometheus/prometheus.yml")),
    );
    assert!(said.contains("4 rules found"), "{said}");
}

/// Expressions of Grafana's dashboard, with its variables filled in.
fn panels() -> Vec<String> {
    let text = fs::read_to_string(repository("deploy/grafana/tandem.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter();
    let targets = targets.flat_map(|panel| panel["targets"].as_array().unwrap());
    let filled = |target: &Value| {
        let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "1m");
        expression.replace("$job", ".*").replace("$instance", ".*")
    };
    targets.map(filled).collect()
}

/// What is asked of Prometheus is what a server tells: no metric of Grafana's dashboard or of the alerts is made up.
#[test]
fn metrics_that_are_shown_exist() {
    let server = Server::start(&[]);
    // Requests are counted by path, and shown once there was one.
    get(&format!("{}/v1/models", server.url)).unwrap();
    let metrics = get(&format!("{}/metrics", server.url)).unwrap();
    let alerts = fs::read_to_string(repository("deploy/prometheus/alerts.yml")).unwrap();
    let alerts = alerts.lines().filter(|line| line.contains("expr:")).map(str::to_owned);
    let expressions: Vec<String> = panels().into_iter().chain(alerts).collect();
    let is_part_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names: BTreeSet<&str> = expressions
        .iter()
        .flat_map(|text| text.split(|c| !is_part_of_a_name(c)))
        .filter(|word| word.starts_with("tandem_"))
        .collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        // A counter that has not counted yet is declared all the same.
        let counter = format!("# TYPE {} counter", name.trim_end_matches("_total"));
        let there = metrics.lines().any(|line| line.starts_with(name) || line == counter);
        assert!(there, "{name} is not among\n{metrics}");
    }
}

/// Prometheus collects from a server by its file, and understands what Grafana asks it.
#[test]
fn prometheus_collects_and_answers_the_dashboard() {
    if !has_program("prometheus") {
        return;
    }
    let server = Server::start(&[]);
    let folder = scratch("prometheus");
    let config = fs::read_to_string(repository("deploy/prometheus/prometheus.yml")).unwrap();
    let config = config.replace("127.0.0.1:8081", server.url.trim_start_matches("http://"));
    let file = folder.path().join("prometheus.yml");
    fs::write(&file, config.replace("interval: 5s", "interval: 1s")).unwrap();
    let rules = "alerts.yml";
    fs::copy(repository("deploy/prometheus").join(rules), folder.path().join(rules)).unwrap();
    let [port] = free_ports();
    let mut prometheus = program("prometheus");
    prometheus
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stderr(Stdio::null());
    let _prometheus = Running(prometheus.spawn().unwrap());
    let ask = |expression: &str| {
        let answer = ureq::get(format!("http://127.0.0.1:{port}/api/v1/query"))
            .query("query", expression)
            .call()
            .map_err(|e| format!("{expression}: {e}"))?;
        let text = answer.into_body().read_to_string().map_err(|e| e.to_string())?;
        serde_json::from_str::<Value>(&text).map_err(|e| e.to_string())
    };
    wait_for("a scrape of the server", || {
        let answer = ask("tandem_ready == 1").ok()?;
        answer["data"]["result"].as_array().is_some_and(|found| found.len() == 1).then_some(())
    });
    for expression in panels() {
        let answer = ask(&expression).unwrap();
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
    }
}

/// The schemas of Kubernetes itself, which come with the Python package `kubernetes-validate`.
#[test]
fn kubernetes_would_take_the_manifests() {
    let folder = repository("deploy/kubernetes");
    let script = "
import sys, pathlib, yaml, kubernetes_validate
count = 0
for path in sorted(pathlib.Path(sys.argv[1]).glob('*.yaml')):
    for document in yaml.safe_load_all(path.read_text()):
        for version in ('1.27', '1.37'):
            kubernetes_validate.validate(document, version, strict=True)
        count += 1
bad = {'apiVersion': 'v1', 'kind': 'Service', 'metadata': {'name': 'x'}, 'spec': {'prots': []}}
try:
    kubernetes_validate.validate(bad, '1.37', strict=True)
    sys.exit('a misspelt field is taken')
except kubernetes_validate.ValidationError:
    pass
print(count)";
    let count = run_python_in(&web_python(), script, &[folder.to_str().unwrap()]);
    assert_eq!(count.trim(), "7");
}

#[test]
fn systemd_reads_the_units() {
    if !has_program("systemd-analyze") {
        return;
    }
    // The units where a system has them, with a program that can be started.
    let root = scratch("systemd");
    let (units, programs) = (root.path().join("etc/systemd/system"), root.path().join("usr/bin"));
    fs::create_dir_all(&units).unwrap();
    fs::create_dir_all(&programs).unwrap();
    fs::copy("/bin/true", programs.join("tandem")).unwrap();
    for unit in ["tandem.service", "tandem-user.service"] {
        let text = fs::read_to_string(repository(&format!("deploy/systemd/{unit}"))).unwrap();
        let text = text.replace("/usr/bin/tandem", &programs.join("tandem").display().to_string());
        fs::write(units.join(unit), text).unwrap();
        let mut verify = Command::new("systemd-analyze");
        let said = check(
            verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(units.join(unit)),
        );
        assert!(!said.contains("tandem"), "{said}");
    }
    let mut security = Command::new("systemd-analyze");
    // 10 is open to everything.
    security
        .args(["security", "--offline=true", "--threshold=25"])
        .arg(units.join("tandem.service"));
    check(&mut security);
}
