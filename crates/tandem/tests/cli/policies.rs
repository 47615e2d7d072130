//! `tandem policies`, without a GPU: what it compares then is the CPU with itself.

use serde_json::Value;
use tandem_testkit::scratch;

use crate::{random_model, stderr, stdout, tandem};

#[test]
fn every_policy_has_its_turn() {
    let folder = scratch("policies");
    let json = folder.path().join("policies.json");
    let output = tandem()
        .args(["policies", "-p", "8", "-n", "2", "-s", "1,2", "-r", "1", "--warm-up", "0"])
        .args(["--hog", "--device", "no such device", "-t", "1", "--json"])
        .arg(&json)
        .arg("-m")
        .arg(random_model())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in ["### pp8\n", "### tg2 x 1\n", "### tg2 x 2, beside", "adaptive", "cpu alone"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    // The CPU alone; three policies, each with and without two things; three tests, with and without a hog.
    assert_eq!(rows.len(), (1 + 3 * 2 * 2) * 3 * 2);
    assert!(rows.iter().all(|row| row["tokens_per_second"].as_f64().unwrap() > 0.0));
    let waited = |row: &&Value| row["token"] == true;
    assert!(rows.iter().filter(waited).count() == 3 * 2 * 3 * 2);
}
