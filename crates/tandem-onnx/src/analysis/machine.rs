//! What a machine can do at most, for the roofline.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tandem_formats::{FormatError, InputFile};
use tandem_model::Result;

/// Profiles have a kilobyte.
const MAX_PROFILE_BYTES: u64 = 1 << 20;

/// A machine's limits, measured or published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineProfile {
    /// Short name.
    pub name: String,
    /// What machine it is.
    pub description: String,
    /// Where the figures come from, and which of them nobody measured.
    pub source: String,
    /// Whether CPU and GPU address the same memory.
    pub shared_memory: bool,
    /// Memory of the machine, where it is known.
    pub memory_bytes: Option<u64>,
    /// The CPU with all threads.
    pub cpu: DeviceProfile,
    /// The GPU, where there is one.
    pub gpu: Option<DeviceProfile>,
    /// Bytes that both together read per second from memory, where it was measured.
    pub both_bytes_per_second: Option<f64>,
}

/// A device's limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProfile {
    /// Bytes read from memory.
    pub bytes_per_second: f64,
    /// Additions and multiplications of 8-bit numbers.
    pub int8_per_second: f64,
    /// Additions and multiplications of f32.
    pub f32_per_second: f64,
    /// Time until an operation begins that another device's operation hands over to.
    #[serde(default)]
    pub handover_seconds: f64,
}

impl MachineProfile {
    /// Profiles that come with the program.
    const SHIPPED: [&str; 1] = [include_str!("../../machines/core-ultra-9-185h.json")];

    /// All profiles that come with the program.
    ///
    /// # Panics
    /// Never: the tests read them.
    pub fn shipped() -> Vec<Self> {
        let parse = |text| serde_json::from_str(text).expect("shipped profiles are valid");
        Self::SHIPPED.into_iter().map(parse).collect()
    }

    /// Reads a profile from a JSON file.
    ///
    /// # Errors
    /// Where the file cannot be read, has other keys, or has rates that are not positive.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = InputFile::open(path)?.read_all(MAX_PROFILE_BYTES)?;
        let profile: Self = serde_json::from_slice(&bytes)
            .map_err(|e| FormatError::invalid(path, "content", "a machine profile", e))?;
        for (device, limits) in [("cpu", Some(&profile.cpu)), ("gpu", profile.gpu.as_ref())] {
            let Some(limits) = limits else { continue };
            for (field, rate) in [
                ("bytes_per_second", limits.bytes_per_second),
                ("int8_per_second", limits.int8_per_second),
                ("f32_per_second", limits.f32_per_second),
            ] {
                if rate <= 0.0 {
                    let field = format!("{device}.{field}");
                    return Err(FormatError::invalid(path, field, "a positive number", rate).into());
                }
            }
        }
        Ok(profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_profiles_have_names_of_their_own() {
        let names: Vec<String> = MachineProfile::shipped().into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["core-ultra-9-185h"]);
    }

    #[test]
    fn profiles_are_checked() {
        let scratch = tandem_testkit::scratch("profile");
        let path = scratch.path().join("machine.json");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            MachineProfile::open(&path).unwrap_err().to_string()
        };
        let good = MachineProfile::SHIPPED[0];
        let message = error(&good.replace("61e9", "0"));
        assert!(message.ends_with("cpu.bytes_per_second: expected a positive number, found 0"));
        let message = error(&good.replace("\"cpu\"", "\"zpu\""));
        assert!(
            message.contains("expected a machine profile, found unknown field `zpu`"),
            "{message}"
        );
        std::fs::write(&path, good).unwrap();
        assert_eq!(MachineProfile::open(&path).unwrap(), MachineProfile::shipped()[0]);
    }
}
