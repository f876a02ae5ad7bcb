//! Filters in the Common Expression Language: `_flow.destination.pod_name.startsWith("web-")`.
//!
//! An expression sees the flow's message as `_flow`, with the names of the `.proto` files; a field
//! that is not set has its default, also below messages that are not set. The enumerations are there
//! by name: `_flow.verdict == Verdict.DROPPED`, or `flow.Verdict.DROPPED`.
//!
//! Making values of a whole message costs more than any other filter, so it is asked last.

use std::collections::HashMap;
use std::sync::Arc;

use api::hubble::{Named, POOL, flow::Flow};
use cel::objects::{Key, Map};
use cel::{Context, Program, Value};
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage as _, Value as Field};

use super::compile::FilterError;

/// Characters of an expression at most.
const EXPRESSION_LEN_MAX: usize = 4096;
/// How deep an expression may be: brackets inside brackets, calculations, negations and conditionals,
/// selections and comparisons in a row. The interpreter recurses for each, and a client must not be
/// able to exhaust our stack.
const DEPTH_OF_EXPRESSION_MAX: usize = 40;
/// `&&` and `||` at most, which are one level each but parsed by a loop.
const JUNCTIONS_MAX: usize = 96;
/// Stack of the thread that parses: the parser takes tens of kilobytes for each level.
const PARSER_STACK_LEN: usize = 32 << 20;
/// Messages inside messages that are looked into; Hubble's go four deep.
const DEPTH_MAX: usize = 6;
/// The field that expressions are in.
const FIELD: &str = "experimental.cel_expression";

/// A compiled expression that gives a boolean.
#[derive(Clone, Debug)]
pub(super) struct Expression(Arc<Program>);

impl Expression {
    pub(super) fn compile(text: &str) -> Result<Self, FilterError> {
        let error = |reason: String| FilterError {
            field: FIELD.to_owned(),
            value: text.to_owned(),
            reason,
        };
        if text.len() > EXPRESSION_LEN_MAX {
            return Err(error(format!("longer than {EXPRESSION_LEN_MAX} characters")));
        }
        if is_too_deep(text) {
            return Err(error(format!(
                "deeper than {DEPTH_OF_EXPRESSION_MAX} levels, or more than {JUNCTIONS_MAX} && and ||"
            )));
        }
        let program = parse(text.to_owned()).map_err(error)?;
        let expression = Self(Arc::new(program));
        // A field that does not exist shows when the expression is asked about any flow.
        match expression.value(&Flow::default()) {
            Ok(Value::Bool(_)) => Ok(expression),
            Ok(other) => Err(error(format!("gives a {}, not a bool", other.type_of()))),
            Err(e) => Err(error(e.to_string())),
        }
    }

    /// Whether the expression is true of the flow; one that fails is not.
    pub(super) fn matches(&self, flow: &Flow) -> bool {
        matches!(self.value(flow), Ok(Value::Bool(true)))
    }

    fn value(&self, flow: &Flow) -> Result<Value, cel::ExecutionError> {
        let mut context = Context::default();
        for name in self.0.references().variables() {
            let value = match name {
                "_flow" => message(flow),
                "flow" => Some(enumerations()),
                other => enumeration(&format!("flow.{other}")),
            };
            if let Some(value) = value {
                context.add_variable_from_value(name, value);
            }
        }
        self.0.execute(&context)
    }
}

fn parse(text: String) -> Result<Program, String> {
    let thread = std::thread::Builder::new().name("cel-parser".to_owned());
    let parse = move || Program::compile(&text).map_err(|error| error.to_string());
    let parser = thread.stack_size(PARSER_STACK_LEN).spawn(parse);
    let parser = parser.map_err(|error| format!("cannot start the parser: {error}"))?;
    parser.join().unwrap_or_else(|_| Err("the parser failed".to_owned()))
}

/// Whether the expression may need more stack than there is. Counts what texts contain as well, which
/// errs on the safe side.
fn is_too_deep(text: &str) -> bool {
    let (mut brackets, mut deepest, mut nested) = (0_usize, 0, 0_usize);
    let (mut row, mut longest_row, mut junctions) = (0, 0, 0_usize);
    for character in text.chars() {
        match character {
            '(' | '[' | '{' => brackets += 1,
            ')' | ']' | '}' => brackets = brackets.saturating_sub(1),
            '!' | '?' | '-' | '+' | '*' | '/' | '%' => nested += 1,
            '.' | '=' | '<' | '>' => row += 1,
            '&' | '|' => {
                junctions += 1;
                longest_row = longest_row.max(row);
                row = 0;
            }
            _ => {}
        }
        deepest = deepest.max(brackets);
    }
    let depth = deepest + nested + longest_row.max(row);
    depth > DEPTH_OF_EXPRESSION_MAX || junctions > 2 * JUNCTIONS_MAX
}

fn message(flow: &Flow) -> Option<Value> {
    let mut dynamic = DynamicMessage::new(Flow::descriptor());
    dynamic.transcode_from(flow).ok()?;
    Some(fields(Some(&dynamic), &Flow::descriptor(), DEPTH_MAX))
}

/// The fields of a message, or of one that is not set.
fn fields(message: Option<&DynamicMessage>, descriptor: &MessageDescriptor, depth: usize) -> Value {
    let mut map = HashMap::new();
    for field in descriptor.fields() {
        let value = match message {
            Some(message) if message.has_field(&field) => value(&message.get_field(&field), depth),
            // Nothing below is set, but its defaults can be asked for.
            _ => match field.kind() {
                Kind::Message(below) if !field.is_list() && depth > 0 => {
                    fields(None, &below, depth - 1)
                }
                _ => value(&Field::default_value_for_field(&field), depth),
            },
        };
        map.insert(Key::String(Arc::new(field.name().to_owned())), value);
    }
    Value::Map(Map { map: Arc::new(map) })
}

fn value(field: &Field, depth: usize) -> Value {
    match field {
        Field::Bool(v) => Value::Bool(*v),
        Field::I32(v) | Field::EnumNumber(v) => Value::Int((*v).into()),
        Field::I64(v) => Value::Int(*v),
        Field::U32(v) => Value::UInt((*v).into()),
        Field::U64(v) => Value::UInt(*v),
        Field::F32(v) => Value::Float((*v).into()),
        Field::F64(v) => Value::Float(*v),
        Field::String(v) => Value::String(Arc::new(v.clone())),
        Field::Bytes(v) => Value::Bytes(Arc::new(v.to_vec())),
        Field::Message(message) => wrapped(message).unwrap_or_else(|| {
            fields(Some(message), &message.descriptor(), depth.saturating_sub(1))
        }),
        Field::List(values) => Value::List(Arc::new(
            values.iter().map(|v| value(v, depth.saturating_sub(1))).collect(),
        )),
        // No message of Hubble has a map.
        Field::Map(_) => Value::Null,
    }
}

/// `google.protobuf.BoolValue` and its kin are what they wrap.
fn wrapped(message: &DynamicMessage) -> Option<Value> {
    let descriptor = message.descriptor();
    let is_wrapper = descriptor.package_name() == "google.protobuf"
        && descriptor.name().ends_with("Value")
        && descriptor.fields().len() == 1;
    let inner = message.get_field_by_name("value").filter(|_| is_wrapper)?;
    Some(value(&inner, 0))
}

/// The values of an enumeration, by name.
fn enumeration(full_name: &str) -> Option<Value> {
    let descriptor = POOL.get_enum_by_name(full_name)?;
    let numbers = descriptor.values().map(|value| {
        (Key::String(Arc::new(value.name().to_owned())), Value::Int(value.number().into()))
    });
    Some(Value::Map(Map { map: Arc::new(numbers.collect()) }))
}

/// All enumerations, by name.
fn enumerations() -> Value {
    let all = POOL.all_enums().filter(|descriptor| descriptor.package_name() == "flow");
    let named = all.filter_map(|descriptor| {
        let name = Key::String(Arc::new(descriptor.name().to_owned()));
        Some((name, enumeration(descriptor.full_name())?))
    });
    Value::Map(Map { map: Arc::new(named.collect()) })
}
