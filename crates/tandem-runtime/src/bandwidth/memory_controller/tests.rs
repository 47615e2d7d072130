//! On trees as the kernel makes them: names, formats and events as in `arch/x86/events/intel/uncore_snb.c` and
//! `uncore_snbep.c`.

use std::path::Path;

use perf_event::Builder;
use perf_event::events::Dynamic;
use tempfile::TempDir;

use super::linux::{count, describe};

const FORMAT: [(&str, &str); 2] = [("event", "config:0-7"), ("umask", "config:8-15")];
const SIXTY_FOUR_BYTES: &str = "6.103515625e-5";

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("{text}\n")).unwrap();
}

fn pmu(tree: &TempDir, name: &str, kind: u32, events: &[(&str, &str)]) {
    let pmu = tree.path().join(name);
    write(&pmu.join("type"), &kind.to_string());
    write(&pmu.join("cpumask"), "0");
    for (field, bits) in FORMAT {
        write(&pmu.join("format").join(field), bits);
    }
    for (event, terms) in events {
        write(&pmu.join("events").join(event), terms);
        write(&pmu.join("events").join(format!("{event}.scale")), SIXTY_FOUR_BYTES);
        write(&pmu.join("events").join(format!("{event}.unit")), "MiB");
    }
}

/// Two controllers, each with programmable counters, which have no named events, and freely running ones.
fn meteor_lake() -> TempDir {
    let tree = TempDir::new().unwrap();
    pmu(&tree, "cpu_core", 4, &[]);
    pmu(&tree, "uncore_imc_0", 20, &[]);
    pmu(&tree, "uncore_imc_1", 21, &[]);
    let free_running = [
        ("data_total", "event=0xff,umask=0x10"),
        ("data_read", "event=0xff,umask=0x20"),
        ("data_write", "event=0xff,umask=0x30"),
    ];
    pmu(&tree, "uncore_imc_free_running_0", 22, &free_running);
    pmu(&tree, "uncore_imc_free_running_1", 23, &free_running);
    tree
}

/// What the kernel would be asked for: the event source's type, and its configuration.
fn asked(event: Dynamic) -> (u32, u64) {
    let builder = Builder::new(event);
    let attributes = builder.attrs();
    (attributes.type_, attributes.config)
}

#[test]
fn meteor_lake_has_two_controllers_that_run_freely() {
    let events = describe(meteor_lake().path()).unwrap();
    let found: Vec<_> = events
        .iter()
        .map(|e| (e.pmu.as_str(), e.writes, e.bytes_per_count, e.cpus.as_slice(), asked(e.event)))
        .collect();
    let [first, second] = ["uncore_imc_free_running_0", "uncore_imc_free_running_1"];
    assert_eq!(
        found,
        [
            (first, false, 64.0, &[0][..], (22, 0x20ff)),
            (first, true, 64.0, &[0][..], (22, 0x30ff)),
            (second, false, 64.0, &[0][..], (23, 0x20ff)),
            (second, true, 64.0, &[0][..], (23, 0x30ff)),
        ]
    );
}

#[test]
fn a_server_counts_column_accesses_in_each_package() {
    let tree = TempDir::new().unwrap();
    let cas =
        [("cas_count_read", "event=0x04,umask=0x03"), ("cas_count_write", "event=0x04,umask=0x0c")];
    pmu(&tree, "uncore_imc_0", 30, &cas);
    write(&tree.path().join("uncore_imc_0/cpumask"), "0,28");
    let events = describe(tree.path()).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!((asked(events[0].event), asked(events[1].event)), ((30, 0x0304), (30, 0x0c04)));
    assert_eq!(events[0].cpus, [0, 28]);
}

#[test]
fn what_is_missing_or_makes_no_sense_is_named() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 5] = [
        ("no uncore_imc*", |tree| {
            for n in 0..2 {
                std::fs::remove_dir_all(tree.join(format!("uncore_imc_free_running_{n}"))).unwrap();
            }
        }),
        ("cpumask: expected a list of CPUs", |tree| {
            write(&tree.join("uncore_imc_free_running_0/cpumask"), "0-x");
        }),
        ("data_read: expected a scale, and MiB", |tree| {
            write(&tree.join("uncore_imc_free_running_0/events/data_read.unit"), "Joules");
        }),
        ("data_write: expected a scale, and MiB", |tree| {
            write(&tree.join("uncore_imc_free_running_1/events/data_write.scale"), "-1");
        }),
        ("data_read: expected a description", |tree| {
            write(&tree.join("uncore_imc_free_running_0/events/data_read"), "no_such_field=1");
        }),
    ];
    for (expected, damage) in cases {
        let tree = meteor_lake();
        damage(tree.path());
        let error = describe(tree.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    assert!(describe(Path::new("/no/such/folder")).is_err());
}

/// Virtual machines have no memory controller, but mostly a counter of the processor's clock, which is opened in the
/// same way.
#[test]
#[allow(clippy::print_stdout)] // of what was not tested
fn a_counter_of_the_machine_is_read() {
    let Ok(event) = Dynamic::builder("msr").and_then(|mut msr| {
        msr.event("tsc")?;
        msr.build().map_err(std::io::Error::other)
    }) else {
        println!("not tested: this machine has no counter msr/tsc");
        return;
    };
    let mut counter = match count(event, 0) {
        Ok(counter) => counter,
        Err(error) => {
            println!("not tested: msr/tsc: {error}");
            return;
        }
    };
    let before = counter.read().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(5));
    let cycles = counter.read().unwrap() - before;
    // A clock of at least 200 MHz.
    assert!(cycles > 1_000_000, "{cycles} cycles in 5 ms");
}
