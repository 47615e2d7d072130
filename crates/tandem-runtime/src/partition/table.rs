//! What the config wants of each operation.

use std::fmt;
use std::str::FromStr;

use super::section::{Result, Section};
use super::yaml::{Entry, Value};
use crate::plan::ExpertRange;
use crate::profile::Operation;

/// Where an operation is to be computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// On the CPU.
    Cpu,
    /// On the integrated GPU.
    Igpu,
    /// Where it was measured to be fastest.
    Auto,
    /// On both: this part of the rows on the GPU, or the part that was measured to be fastest.
    Split(Option<f32>),
    /// These experts on the GPU, the others on the CPU, at the same time: what stages of the pipeline say.
    Experts(ExpertRange),
}

/// Text that names no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected cpu, igpu, auto, split or split=R with R from 0 to 1, the GPU's part of the rows"
)]
pub struct NoPlace;

impl FromStr for Wanted {
    type Err = NoPlace;

    fn from_str(text: &str) -> std::result::Result<Self, NoPlace> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "igpu" => Ok(Self::Igpu),
            "auto" => Ok(Self::Auto),
            "split" => Ok(Self::Split(None)),
            _ => {
                let ratio = text.strip_prefix("split=").and_then(|ratio| ratio.parse().ok());
                let valid = ratio.filter(|ratio| (0.0..=1.0).contains(ratio));
                valid.map(|ratio| Self::Split(Some(ratio))).ok_or(NoPlace)
            }
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Igpu => f.write_str("igpu"),
            Self::Auto => f.write_str("auto"),
            Self::Split(None) => f.write_str("split"),
            Self::Split(Some(ratio)) => write!(f, "split={ratio}"),
            Self::Experts(range) => write!(f, "igpu experts {range}"),
        }
    }
}

/// Names for several operations, or for what is computed together with one.
const GROUPS: [(&str, &[Operation]); 3] = [
    // Rotary embedding takes place while attention takes up queries and writes keys.
    ("position_encoding", &[Operation::AttentionCompute]),
    // SparseMixer masks while it selects.
    ("expert_masking", &[Operation::ExpertSelection]),
    (
        "expert_ffn",
        &[Operation::ExpertFfnW1, Operation::ExpertFfnActivation, Operation::ExpertFfnW2],
    ),
];

/// What a wish comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of the config.
    Line(u64),
    /// The table that counts where the config is silent.
    Usual,
    /// What is wanted of every operation.
    Everything,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line} of the config"),
            Self::Usual => f.write_str("as usual"),
            Self::Everything => f.write_str("like everything"),
        }
    }
}

/// Where an operation is to be computed, by what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wish {
    pub(super) wanted: Wanted,
    pub(super) source: Source,
}

/// Wishes for some operations.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Table([Option<Wish>; Operation::ALL.len()]);

impl Table {
    /// The same for every operation; those that cannot be split are then computed by the CPU.
    pub(super) fn everything(wanted: Wanted) -> Self {
        Self(
            Operation::ALL
                .map(|operation| Some(Wish::of_group(wanted, operation, Source::Everything))),
        )
    }

    /// Where operations are computed that neither config nor calibration places: products with large weights on the
    /// GPU with the sorting of tokens between them, small steps and the ends of the model on the CPU. Attention, and
    /// the product with its result, depend on the pass.
    pub(super) fn usual() -> Self {
        use Operation as O;
        Self(Operation::ALL.map(|operation| {
            let wanted = match operation {
                O::AttentionQkvProj
                | O::ExpertDispatch
                | O::ExpertFfnW1
                | O::ExpertFfnActivation
                | O::ExpertFfnW2
                | O::ExpertGather => Wanted::Igpu,
                O::AttentionCompute | O::AttentionOutputProj => Wanted::Auto,
                O::Embedding
                | O::AttentionLayernorm
                | O::MoeLayernorm
                | O::RouterLogits
                | O::ExpertSelection
                | O::FinalLayernorm
                | O::LmHead => Wanted::Cpu,
            };
            Some(Wish { wanted, source: Source::Usual })
        }))
    }

    /// The operations of a section.
    pub(super) fn read(section: &Section<'_>) -> Result<Self> {
        let groups = GROUPS.map(|(name, _)| name);
        let known: Vec<_> = Operation::ALL.map(Operation::name).into_iter().chain(groups).collect();
        section.only(&known)?;
        let mut table = Self::default();
        for operation in Operation::ALL {
            if let Some(entry) = section.get(operation.name()) {
                let wanted = wanted(section, entry, operation.can_be_split())?;
                table.0[operation as usize] =
                    Some(Wish { wanted, source: Source::Line(entry.line) });
            }
        }
        for (name, operations) in GROUPS {
            if let Some(entry) = section.get(name) {
                table.add_group(section, entry, operations)?;
            }
        }
        Ok(table)
    }

    /// What a group wants counts for all of its operations, and none may want otherwise by itself.
    fn add_group(
        &mut self,
        section: &Section<'_>,
        entry: &Entry,
        operations: &[Operation],
    ) -> Result<()> {
        let can_be_split = operations.iter().any(|operation| operation.can_be_split());
        let wanted = wanted(section, entry, can_be_split)?;
        for &operation in operations {
            let wish = Wish::of_group(wanted, operation, Source::Line(entry.line));
            match self.0[operation as usize].replace(wish) {
                Some(Wish { wanted, source: Source::Line(line) }) if wanted != wish.wanted => {
                    let name = operation.name();
                    let expected = format!("what line {line} wants of {name}: {wanted}");
                    return Err(section.invalid(entry, expected));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Wants an operation somewhere, by a line of the config; those that cannot be split are the CPU's where that is
    /// `split`.
    pub(super) fn place(&mut self, operation: Operation, wanted: Wanted, line: u64) {
        let wish = Wish::of_group(wanted, operation, Source::Line(line));
        self.0[operation as usize] = Some(wish);
    }

    /// Whether anything is wanted of an operation here.
    pub(super) fn has(&self, operation: Operation) -> bool {
        self.get(operation).is_some()
    }

    /// What is wanted of an operation here.
    pub(super) fn get(&self, operation: Operation) -> Option<Wish> {
        self.0[operation as usize]
    }

    /// Whether some operation is wanted so.
    pub(super) fn any(&self, is: impl Fn(Wanted) -> bool) -> bool {
        self.0.iter().flatten().any(|wish| is(wish.wanted))
    }

    /// The same with `below` where this one wants nothing.
    pub(super) fn or(mut self, below: &Self) -> Self {
        for (wish, other) in self.0.iter_mut().zip(&below.0) {
            *wish = wish.or(*other);
        }
        self
    }
}

/// The operations that a name stands for.
pub(super) fn operations(name: &str) -> Option<&'static [Operation]> {
    static ALL: [Operation; Operation::ALL.len()] = Operation::ALL;
    let single = || ALL.iter().position(|operation| operation.name() == name);
    let group = GROUPS.iter().find(|(group, _)| *group == name).map(|(_, operations)| *operations);
    group.or_else(|| single().map(|index| &ALL[index..=index]))
}

/// Whether an operation is part of what experts compute.
pub(super) fn is_of_expert_ffn(operation: Operation) -> bool {
    operations("expert_ffn").is_some_and(|parts| parts.contains(&operation))
}

/// What a name in the table stands for: one operation or several that follow each other; nothing where it has no such
/// name.
pub fn operations_named(name: &str) -> Vec<Operation> {
    operations(name).unwrap_or_default().to_vec()
}

/// Whether a key names an operation that layers do not have.
pub(super) fn is_outside(key: &str) -> bool {
    Operation::ALL.iter().any(|operation| operation.name() == key && !operation.is_of_layers())
}

impl Wish {
    /// What a group's wish means for one of its operations. Where a group is split, those of its operations that
    /// cannot be are the CPU's.
    fn of_group(wanted: Wanted, operation: Operation, source: Source) -> Self {
        let wanted = match wanted {
            Wanted::Split(_) | Wanted::Experts(_) if !operation.can_be_split() => Wanted::Cpu,
            wanted => wanted,
        };
        Self { wanted, source }
    }
}

/// `split`, `split=0.3` and `{split: 0.3}` say the same of a ratio.
pub(super) fn wanted(section: &Section<'_>, entry: &Entry, can_be_split: bool) -> Result<Wanted> {
    let wanted = match &entry.node.value {
        Value::Text(text) => text.parse().map_err(|e: NoPlace| {
            let text = e.to_string();
            section.invalid(entry, text.trim_start_matches("expected "))
        })?,
        Value::Map(_) => {
            let inner = section.section_at(entry)?;
            inner.only(&["split"])?;
            Wanted::Split(inner.number("split", 0.0..=1.0)?.map(|ratio| ratio as f32))
        }
        _ => return Err(section.invalid(entry, "cpu, igpu, auto or split")),
    };
    if matches!(wanted, Wanted::Split(_)) && !can_be_split {
        let expected = "cpu, igpu or auto: only the rows of attention_qkv_proj, attention_output_proj, \
                        expert_ffn and lm_head can be split";
        return Err(section.invalid(entry, expected));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["cpu", "igpu", "auto", "split", "split=0.3", "split=0", "split=1"] {
            assert_eq!(text.parse::<Wanted>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "CPU", "split=", "split=1.1", "split=-0.1", "split=NaN", "split 1"]
        {
            assert_eq!(text.parse::<Wanted>(), Err(NoPlace), "{text}");
        }
    }

    #[test]
    fn the_usual_table_places_every_operation() {
        let table = Table::usual();
        for operation in Operation::ALL {
            assert!(table.get(operation).is_some_and(|wish| wish.source == Source::Usual));
        }
    }
}
