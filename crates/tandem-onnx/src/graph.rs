//! A graph under construction.

use std::collections::HashSet;

use prost::Message;

use crate::proto::{
    AttributeProto, AttributeType, DataType, DimensionProto, DimensionValue, GraphProto,
    ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto,
};

/// Version of the standard operators: the one of ONNX 1.16, which ONNX Runtime has from 1.18 on.
pub const OPSET: i64 = 21;

/// Version of the file format that goes with [`OPSET`].
const IR_VERSION: i64 = 10;

/// The domain of ONNX Runtime's own operators.
const CONTRIB: &str = "com.microsoft";

/// A tensor in a graph, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value(String);

/// A constant of a node.
pub(crate) enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
}

/// A dimension of an input or output.
#[derive(Clone, Copy)]
pub(crate) enum Dim {
    Fixed(usize),
    /// Known when the model runs.
    Named(&'static str),
}

/// Nodes, constants, inputs and outputs so far.
#[derive(Default)]
pub(crate) struct Graph {
    proto: GraphProto,
    initializers: HashSet<String>,
    scope: String,
    has_contrib: bool,
}

impl Graph {
    pub(crate) fn new(name: &str) -> Self {
        let proto = GraphProto { name: name.to_owned(), ..GraphProto::default() };
        Self { proto, ..Self::default() }
    }

    /// Begins the names of the nodes that follow.
    pub(crate) fn set_scope(&mut self, scope: String) {
        self.scope = scope;
    }

    /// A node without attributes.
    pub(crate) fn op(&mut self, op: &str, inputs: &[&Value]) -> Value {
        self.op_with(op, inputs, &[])
    }

    /// A node with one output.
    pub(crate) fn op_with(
        &mut self,
        op: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
    ) -> Value {
        self.node("", op, inputs, attributes, 1).remove(0)
    }

    /// A node with `n` outputs.
    pub(crate) fn ops(
        &mut self,
        op: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
        n: usize,
    ) -> Vec<Value> {
        self.node("", op, inputs, attributes, n)
    }

    /// A node of one of ONNX Runtime's own operators.
    pub(crate) fn contrib(
        &mut self,
        op: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
    ) -> Value {
        self.has_contrib = true;
        self.node(CONTRIB, op, inputs, attributes, 1).remove(0)
    }

    fn node(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
        n: usize,
    ) -> Vec<Value> {
        let name = format!("{}/{op}_{}", self.scope, self.proto.node.len());
        let output: Vec<String> = match n {
            1 => vec![name.clone()],
            n => (0..n).map(|i| format!("{name}:{i}")).collect(),
        };
        self.proto.node.push(NodeProto {
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output: output.clone(),
            name,
            op_type: op.to_owned(),
            attribute: attributes.iter().map(|(name, value)| value.to_proto(name)).collect(),
            domain: domain.to_owned(),
        });
        output.into_iter().map(Value).collect()
    }

    /// Gives a value that was computed a name that stays, as readers of a graph may ask for it. The old one is gone.
    pub(crate) fn name(&mut self, value: &Value, name: &str) -> Value {
        let nodes = self.proto.node.iter_mut();
        for tensor in nodes.flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
            if *tensor == value.0 {
                name.clone_into(tensor);
            }
        }
        Value(name.to_owned())
    }

    /// A tensor with its own content or content in another file, once for each name.
    pub(crate) fn initializer(&mut self, tensor: TensorProto) -> Value {
        let name = tensor.name.clone();
        if self.initializers.insert(name.clone()) {
            self.proto.initializer.push(tensor);
        }
        Value(name)
    }

    /// A constant vector of whole numbers.
    pub(crate) fn ints(&mut self, numbers: &[i64]) -> Value {
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let dims = vec![numbers.len() as i64];
        self.constant(format!("ints{numbers:?}"), DataType::Int64, dims, bytes)
    }

    /// A constant whole number.
    pub(crate) fn int(&mut self, n: i64) -> Value {
        self.constant(format!("int({n})"), DataType::Int64, Vec::new(), n.to_le_bytes().to_vec())
    }

    /// A constant f32.
    pub(crate) fn float(&mut self, x: f32) -> Value {
        self.constant(format!("float({x})"), DataType::Float, Vec::new(), x.to_le_bytes().to_vec())
    }

    /// A constant vector of f32 under a name of its own.
    pub(crate) fn floats(&mut self, name: &str, numbers: &[f32]) -> Value {
        let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.constant(name.to_owned(), DataType::Float, vec![numbers.len() as i64], bytes)
    }

    fn constant(&mut self, name: String, kind: DataType, dims: Vec<i64>, bytes: Vec<u8>) -> Value {
        self.initializer(TensorProto {
            dims,
            data_type: kind.into(),
            name,
            raw_data: Some(bytes),
            ..TensorProto::default()
        })
    }

    /// An input of the graph.
    pub(crate) fn input(&mut self, name: &str, kind: DataType, dims: &[Dim]) -> Value {
        self.proto.input.push(value_info(name, kind, dims));
        Value(name.to_owned())
    }

    /// An input of one whole number that callers may leave out.
    pub(crate) fn optional_int(&mut self, name: &str, default: i64) -> Value {
        let value = self.input(name, DataType::Int64, &[]);
        let bytes = default.to_le_bytes().to_vec();
        self.constant(name.to_owned(), DataType::Int64, Vec::new(), bytes);
        value
    }

    /// Makes a value an output, whose name becomes `name`.
    pub(crate) fn output(&mut self, value: &Value, name: &str, kind: DataType, dims: &[Dim]) {
        self.name(value, name);
        self.proto.output.push(value_info(name, kind, dims));
    }

    /// The bytes of a model with this graph.
    pub(crate) fn into_model(self) -> Vec<u8> {
        let set =
            |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version };
        let mut opset_import = vec![set("", OPSET)];
        if self.has_contrib {
            opset_import.push(set(CONTRIB, 1));
        }
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: "tandem".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(self.proto),
            opset_import,
        };
        model.encode_to_vec()
    }
}

impl Attribute {
    fn to_proto(&self, name: &str) -> AttributeProto {
        let (kind, f, i, ints) = match self {
            Self::Int(n) => (AttributeType::Int, None, Some(*n), Vec::new()),
            Self::Ints(list) => (AttributeType::Ints, None, None, list.clone()),
            Self::Float(x) => (AttributeType::Float, Some(*x), None, Vec::new()),
        };
        AttributeProto { name: name.to_owned(), f, i, ints, r#type: kind.into() }
    }
}

fn value_info(name: &str, kind: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|dim| DimensionProto {
            value: Some(match dim {
                Dim::Fixed(n) => DimensionValue::Value(*n as i64),
                Dim::Named(name) => DimensionValue::Param((*name).to_owned()),
            }),
        })
        .collect();
    let tensor = TensorTypeProto { elem_type: kind.into(), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}
