//! The section `pipelining`: stages, which place operations and ranges of experts, and how experts are uploaded.

use tandem_gpu::Prefetch;
use tandem_model::PhimoeConfig;

use crate::partition::section::{Result, Section};
use crate::partition::table::{self, Table, Wanted};
use crate::partition::yaml::{Entry, Value};
use crate::plan::ExpertRange;
use crate::profile::Operation;

/// How passes are cut into stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pipelining {
    /// Operations that are placed together, in the order of the config.
    pub stages: Vec<Stage>,
    /// How experts are uploaded to a GPU with memory of its own.
    pub expert_staging: ExpertStaging,
    /// What the stages want of operations; empty where there are none.
    pub(in crate::partition) table: Table,
}

/// Operations that are placed together.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its name, which counts for nothing else.
    pub name: String,
    /// Where its operations are computed.
    pub device: Wanted,
    /// Its operations.
    pub operations: Vec<Operation>,
    /// Of the experts these only.
    pub experts: Option<ExpertRange>,
}

/// How experts are uploaded to a GPU with memory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertStaging {
    /// Staging buffers.
    pub buffers: usize,
    /// Experts of each.
    pub experts_per_buffer: usize,
    /// Which experts are uploaded ahead.
    pub prefetch: Prefetch,
}

impl Default for ExpertStaging {
    fn default() -> Self {
        Self { buffers: 2, experts_per_buffer: 2, prefetch: Prefetch::Predict }
    }
}

pub(in crate::partition) fn read(
    section: &Section<'_>,
    config: &PhimoeConfig,
) -> Result<Pipelining> {
    section.only(&["stages", "expert_staging"])?;
    let staging = section.section("expert_staging")?;
    staging.only(&["buffer_count", "experts_per_buffer", "prefetch_strategy"])?;
    let usual = ExpertStaging::default();
    let strategies = [("predict", Prefetch::Predict), ("sequential", Prefetch::Sequential)];
    let expert_staging = ExpertStaging {
        buffers: staging.count("buffer_count", 1..=64)?.unwrap_or(usual.buffers),
        experts_per_buffer: staging
            .count("experts_per_buffer", 1..=256)?
            .unwrap_or(usual.experts_per_buffer),
        prefetch: staging.one_of("prefetch_strategy", &strategies)?.unwrap_or(usual.prefetch),
    };
    let mut placed = Placed::default();
    let mut stages = Vec::new();
    for section in section.sections("stages")? {
        stages.push(stage(&section, config, &mut placed)?);
    }
    Ok(Pipelining { stages, expert_staging, table: placed.table(section, config)? })
}

/// What stages have placed so far.
#[derive(Default)]
struct Placed {
    table: Table,
    /// Ranges of experts: whose, and the line that says so.
    ranges: Vec<(ExpertRange, Wanted, u64)>,
}

fn stage(section: &Section<'_>, config: &PhimoeConfig, placed: &mut Placed) -> Result<Stage> {
    section.only(&["name", "device", "operations", "expert_range"])?;
    let name = section.text("name", "the stage's name")?;
    let (Some(name), Some(device), Some(operations)) =
        (name, section.get("device"), section.get("operations"))
    else {
        return Err(section.lacking("a stage with name, device and operations"));
    };
    let experts = section.get("expert_range").map(|entry| range(section, entry, config));
    let experts = experts.transpose()?;
    let line = device.line;
    let device = match experts {
        None => table::wanted(section, device, true)?,
        Some(_) => {
            let devices = [("cpu", Wanted::Cpu), ("igpu", Wanted::Igpu)];
            section.one_of("device", &devices)?.unwrap_or(Wanted::Cpu)
        }
    };
    let operations = named(section, operations, experts.is_some(), device, placed)?;
    if let Some(experts) = experts {
        placed.add_range(section, experts, device, line)?;
    } else {
        for &operation in &operations {
            placed.table.place(operation, device, line);
        }
    }
    Ok(Stage { name: name.to_owned(), device, operations, experts })
}

/// The operations that a stage names.
fn named(
    section: &Section<'_>,
    entry: &Entry,
    of_experts: bool,
    device: Wanted,
    placed: &Placed,
) -> Result<Vec<Operation>> {
    let mut all = Vec::new();
    for item in section.items(entry)? {
        let name = if let Value::Text(name) = &item.value { name } else { "" };
        let refused = |expected: &str| Err(section.invalid_item(entry, item, expected));
        let Some(operations) = table::operations(name) else {
            return refused("the name of an operation, as in static_partition");
        };
        let splits = matches!(device, Wanted::Split(_));
        if splits && !operations.iter().any(|operation| operation.can_be_split()) {
            return refused("an operation that can be split, as the stage's device says");
        }
        for &operation in operations {
            if of_experts && !table::is_of_expert_ffn(operation) {
                return refused("expert_ffn or its parts, in a stage with an expert_range");
            }
            let ranged = !placed.ranges.is_empty() && table::is_of_expert_ffn(operation);
            if all.contains(&operation) || placed.table.has(operation) || (ranged && !of_experts) {
                return refused("an operation that no other stage has");
            }
            all.push(operation);
        }
    }
    if of_experts && all.is_empty() {
        return Err(section.invalid(entry, "expert_ffn, in a stage with an expert_range"));
    }
    Ok(all)
}

/// `[first, last]`, both inclusive.
fn range(section: &Section<'_>, entry: &Entry, config: &PhimoeConfig) -> Result<ExpertRange> {
    let items = section.items(entry)?;
    let numbers: Vec<_> = items.iter().filter_map(|item| item.value.as_count()).collect();
    match numbers[..] {
        [first, last] if items.len() == 2 && first <= last && last < config.n_experts => {
            Ok(ExpertRange { first: number(first), last: number(last) })
        }
        _ => {
            let last = config.n_experts - 1;
            let expected = format!("[A, B] with A up to B, and B up to {last}, the last expert");
            Err(section.invalid(entry, expected))
        }
    }
}

/// The config allows as many experts.
fn number(expert: usize) -> u16 {
    u16::try_from(expert).unwrap_or(u16::MAX)
}

impl Placed {
    fn add_range(
        &mut self,
        section: &Section<'_>,
        range: ExpertRange,
        device: Wanted,
        line: u64,
    ) -> Result<()> {
        let other = |(other, ..): &&(ExpertRange, Wanted, u64)| {
            range.first <= other.last && other.first <= range.last
        };
        if self.ranges.iter().any(|placed| other(&placed)) {
            return Err(section.lacking("experts that no other stage has"));
        }
        self.ranges.push((range, device, line));
        Ok(())
    }

    /// What stages want of each operation. Experts of no stage are the CPU's.
    fn table(mut self, section: &Section<'_>, config: &PhimoeConfig) -> Result<Table> {
        self.ranges.sort_by_key(|(range, ..)| range.first);
        let mut igpu: Option<ExpertRange> = None;
        for (range, ..) in self.ranges.iter().filter(|(_, device, _)| *device == Wanted::Igpu) {
            igpu = Some(match igpu {
                None => *range,
                Some(before) if before.last + 1 == range.first => {
                    ExpertRange { first: before.first, last: range.last }
                }
                Some(_) => {
                    return Err(
                        section.lacking("the GPU's experts in one run, with no others between")
                    );
                }
            });
        }
        let Some(&(.., line)) = self.ranges.first() else { return Ok(self.table) };
        let all = ExpertRange { first: 0, last: number(config.n_experts - 1) };
        let wanted = match igpu {
            None => Wanted::Cpu,
            Some(igpu) if igpu == all => Wanted::Igpu,
            Some(igpu) => Wanted::Experts(igpu),
        };
        for operation in Operation::ALL.into_iter().filter(|&o| table::is_of_expert_ffn(o)) {
            self.table.place(operation, wanted, line);
        }
        Ok(self.table)
    }
}
