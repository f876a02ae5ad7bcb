//! Validation rules of custom resources (`x-kubernetes-validations`), in CEL.
//!
//! ```text
//!   definition ──parse──► Rule (checked against its schema) ──► Schema
//!   object ──to_value──► self, oldSelf ──evaluate──► FieldError
//! ```
//!
//! The language is the crate `cel`'s; `functions` adds what Kubernetes does, `types` finds
//! rules that can never work.

mod functions;
mod types;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use cel::common::value::CowVal;
use cel::objects::{Key, OptionalValue};
use cel::{Context, Env, Program, Value as Cel};
use serde_json::{Map, Value, json};

use super::schema::{Kind, ListType, Schema, SchemaFault};
use super::status::{Fault, FieldError};
use types::{Scope, Ty};

/// Words that mean something to CEL, so that fields of these names are written `__word__`.
const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
/// Bytes of a rule at most.
const RULE_LEN_MAX: usize = 16 << 10;
/// The parser and the interpreter recurse for each level, and nobody must be able to exhaust our
/// stack.
const DEPTH_MAX: usize = 64;
/// What the stack of any thread is enough for.
const DEPTH_SHALLOW_MAX: usize = 16;
/// Stack of the thread that parses: the parser takes tens of kilobytes for each level.
const STACK_LEN: usize = 64 << 20;

/// What stands for characters that identifiers cannot have.
const ESCAPES: &[(&str, &str)] =
    &[("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")];

/// A rule, ready to be asked.
pub(super) struct Rule {
    program: Program,
    source: String,
    message: Option<String>,
    message_program: Option<Program>,
    reason: Reason,
    /// Where the fault is told to be, relative to the value.
    field_path: String,
    /// Compares with what was there before.
    is_transition: bool,
    /// Is asked for new values too, with an `oldSelf` that may be absent.
    optional_old: bool,
    /// So deep that it needs a stack of its own.
    is_deep: bool,
}

#[derive(Clone, Copy)]
enum Reason {
    Invalid,
    Forbidden,
    Required,
    Duplicate,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rule({:?})", self.source)
    }
}

fn environment() -> &'static Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| functions::environment().into())
}

/// The rules of a schema, which knows its fields already.
pub(super) fn parse(rules: &Value, schema: &Schema) -> Result<Vec<Rule>, SchemaFault> {
    let rules = rules.as_array().into_iter().flatten().enumerate();
    rules
        .map(|(index, json)| {
            Rule::parse(json, schema)
                .map_err(|fault| fault.within(&format!("x-kubernetes-validations[{index}]")))
        })
        .collect()
}

impl Rule {
    fn parse(json: &Value, schema: &Schema) -> Result<Self, SchemaFault> {
        let text = |name: &str| json[name].as_str().map(str::trim).filter(|text| !text.is_empty());
        let source = text("rule")
            .ok_or_else(|| SchemaFault::new("rule", "", "rule is not specified"))?
            .to_owned();
        let optional_old = json["optionalOldSelf"] == true;
        let fault = |field: &str, source: &str, why: String| {
            SchemaFault::new(field, source, format!("compilation failed: {why}"))
        };
        let (program, gives) =
            compile(&source, schema, optional_old).map_err(|why| fault("rule", &source, why))?;
        if !matches!(gives, Ty::Bool | Ty::Dyn) {
            let why = "cel expression must evaluate to a bool".to_owned();
            return Err(fault("rule", &source, why));
        }
        let message = text("message").map(str::to_owned);
        if let Some(message) = message.as_deref().filter(|text| text.contains('\n')) {
            return Err(SchemaFault::new(
                "message",
                message,
                "message must not contain line breaks",
            ));
        }
        let message_program = match text("messageExpression") {
            None => None,
            Some(source) => {
                let compiled = compile(source, schema, optional_old);
                let (program, gives) =
                    compiled.map_err(|why| fault("messageExpression", source, why))?;
                if !matches!(gives, Ty::String | Ty::Dyn) {
                    let why = "messageExpression must evaluate to a string".to_owned();
                    return Err(fault("messageExpression", source, why));
                }
                Some(program)
            }
        };
        let programs = std::iter::once(&program).chain(&message_program);
        let deepest = programs.map(|program| types::depth(program.expression())).max();
        let is_deep = deepest > Some(DEPTH_SHALLOW_MAX);
        let is_transition = program.references().has_variable("oldSelf");
        if optional_old && !is_transition {
            let why = "may not be set to true if oldSelf is not used in rule";
            return Err(SchemaFault::new("optionalOldSelf", true, why));
        }
        let reason = match text("reason") {
            None | Some("FieldValueInvalid") => Reason::Invalid,
            Some("FieldValueForbidden") => Reason::Forbidden,
            Some("FieldValueRequired") => Reason::Required,
            Some("FieldValueDuplicate") => Reason::Duplicate,
            Some(other) => {
                let why = "supported values: \"FieldValueRequired\", \"FieldValueInvalid\", \"FieldValueForbidden\", \"FieldValueDuplicate\"";
                return Err(SchemaFault::new("reason", other, why));
            }
        };
        let field_path = text("fieldPath").unwrap_or_default().to_owned();
        check_field_path(&field_path, schema)?;
        Ok(Self {
            program,
            source,
            message,
            message_program,
            reason,
            field_path,
            is_transition,
            optional_old,
            is_deep,
        })
    }

    /// Asks the rule about a value.
    fn evaluate(
        &self,
        schema: &Schema,
        value: &Value,
        old: Option<&Value>,
        path: &str,
    ) -> Option<FieldError> {
        let unchanged = old == Some(value);
        match (self.is_transition, old) {
            (true, None) if !self.optional_old => return None,
            // What was wrong before may stay as it is.
            (false, _) if unchanged => return None,
            _ => {}
        }
        let ask = || self.ask(schema, value, old, path);
        if self.is_deep { with_large_stack(ask).unwrap_or(None) } else { ask() }
    }

    fn ask(
        &self,
        schema: &Schema,
        value: &Value,
        old: Option<&Value>,
        path: &str,
    ) -> Option<FieldError> {
        let mut context = Context::with_env(environment().clone());
        context.add_variable_from_value("self", to_cel(schema, value));
        if self.is_transition {
            let old = old.map(|old| to_cel(schema, old));
            let old = match (self.optional_old, old) {
                (true, Some(old)) => Cel::Opaque(Arc::new(OptionalValue::of(old))),
                (true, None) => Cel::Opaque(Arc::new(OptionalValue::none())),
                (false, old) => old.unwrap_or(Cel::Null),
            };
            context.add_variable_from_value("oldSelf", old);
        }
        let words = || match &self.message {
            Some(message) => message.clone(),
            None => format!("failed rule: {}", self.source),
        };
        let detail = match self.program.execute(&context) {
            Ok(Cel::Bool(true)) => return None,
            Ok(Cel::Bool(false)) => self.own_words(&context).unwrap_or_else(words),
            Ok(_) => format!("the rule does not evaluate to a bool: {}", words()),
            Err(error) => {
                let rule = self.message.clone().unwrap_or_else(|| self.source.clone());
                format!("{error} evaluating rule: {rule}")
            }
        };
        let field = match (path, self.field_path.as_str()) {
            (path, "") => path.to_owned(),
            ("", relative) => relative.trim_start_matches('.').to_owned(),
            (path, relative) => format!("{path}{relative}"),
        };
        let type_name = || json!(schema.kind.map_or("object", Kind::name));
        let fault = match self.reason {
            Reason::Invalid => Fault::Invalid(type_name()),
            Reason::Forbidden => Fault::Forbidden,
            Reason::Required => Fault::Required,
            Reason::Duplicate => Fault::Duplicate(type_name()),
        };
        Some(FieldError { field, fault, detail })
    }

    /// What the rule's own expression says; nothing if that is of no use.
    fn own_words(&self, context: &Context<'_, '_>) -> Option<String> {
        match self.message_program.as_ref()?.execute(context) {
            Ok(Cel::String(text)) => {
                let text = text.trim();
                (!text.is_empty() && !text.contains('\n')).then(|| text.to_owned())
            }
            _ => None,
        }
    }
}

/// A program, and the type of what it gives.
fn compile<'a>(
    source: &str,
    schema: &'a Schema,
    optional_old: bool,
) -> Result<(Program, Ty<'a>), String> {
    if source.len() > RULE_LEN_MAX {
        return Err(format!("rules must not be longer than {RULE_LEN_MAX} bytes"));
    }
    if depth(source) > DEPTH_MAX {
        return Err(format!("rules must not be nested deeper than {DEPTH_MAX} levels"));
    }
    with_large_stack(|| compile_here(source, schema, optional_old))
        .unwrap_or_else(|| Err("the parser failed".to_owned()))
}

/// `None` when there is no thread to be had, or the work has panicked.
fn with_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK_LEN);
        thread.spawn_scoped(scope, work).ok()?.join().ok()
    })
}

/// How deep the interpreter may have to go, at most: brackets within brackets, and operators that
/// apply to what others give. Counts what texts contain as well, which errs on the safe side.
fn depth(source: &str) -> usize {
    let (mut brackets, mut deepest, mut operators) = (0_usize, 0, 0);
    for character in source.chars() {
        match character {
            '(' | '[' | '{' => brackets += 1,
            ')' | ']' | '}' => brackets = brackets.saturating_sub(1),
            '!' | '?' | '-' | '+' | '*' | '/' | '%' => operators += 1,
            _ => {}
        }
        deepest = deepest.max(brackets);
    }
    deepest + operators / 2
}

fn compile_here<'a>(
    source: &str,
    schema: &'a Schema,
    optional_old: bool,
) -> Result<(Program, Ty<'a>), String> {
    let program = environment().compile(source).map_err(|errors| errors.to_string())?;
    let of_self = Ty::of(schema);
    let old = if optional_old { Ty::Dyn } else { of_self };
    let mut scope = Scope::new(vec![("self".to_owned(), of_self), ("oldSelf".to_owned(), old)]);
    let gives = scope.check(program.expression()).map_err(|(id, why)| {
        let at = program.source_info().offset_for(id).map_or(0, |(start, _)| start as usize);
        let before = source.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let text = source.lines().nth(line - 1).unwrap_or_default();
        format!("ERROR: <input>:{line}:{column}: {why}\n | {text}\n | {}^", ".".repeat(column - 1))
    })?;
    Ok((program, gives))
}

/// A path such as `.spec.size` or `.items['a']` must lead to a field.
fn check_field_path(path: &str, schema: &Schema) -> Result<(), SchemaFault> {
    let fault = |why: &str| Err(SchemaFault::new("fieldPath", path, why));
    if path.is_empty() {
        return Ok(());
    }
    if !path.starts_with(['.', '[']) {
        return fault("fieldPath must start with `.` or `[`");
    }
    let (mut rest, mut at) = (path, Some(schema));
    while !rest.is_empty() {
        let (name, after) = if let Some(quoted) = rest.strip_prefix("['") {
            match quoted.split_once("']") {
                Some(split) => split,
                None => return fault("a quoted name does not end"),
            }
        } else if let Some(plain) = rest.strip_prefix('.') {
            plain.split_at(plain.find(['.', '[']).unwrap_or(plain.len()))
        } else {
            return fault("lists are not supported in fieldPath");
        };
        at = at.and_then(|schema| schema.child(name));
        if name.is_empty() || at.is_none() {
            return fault("does not refer to a valid field");
        }
        rest = after;
    }
    Ok(())
}

/// Asks the rules of a schema and of all that is in it.
pub(super) fn validate(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: &mut String,
    errors: &mut Vec<FieldError>,
) {
    if !schema.has_rules_below() || value.is_null() {
        return;
    }
    let rules = schema.rules.iter();
    errors.extend(rules.filter_map(|rule| rule.evaluate(schema, value, old, path)));
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                if let Some(child) = schema.child(name) {
                    let old = old.and_then(|old| old.get(name));
                    super::schema::within(path, name, |path| {
                        validate(child, inner, old, path, errors);
                    });
                }
            }
        }
        Value::Array(items) => {
            let Some(node) = &schema.items else { return };
            for (index, inner) in items.iter().enumerate() {
                let old = old.and_then(|old| counterpart(schema, inner, old));
                super::schema::at_index(path, index, |path| {
                    validate(node.schema(), inner, old, path, errors);
                });
            }
        }
        _ => {}
    }
}

/// The item of the old list that has the same keys; lists without keys have none.
fn counterpart<'a>(schema: &Schema, item: &Value, old: &'a Value) -> Option<&'a Value> {
    let ListType::Map(keys) = &schema.list else { return None };
    let same = |other: &&Value| keys.iter().all(|key| other[&**key] == item[&**key]);
    old.as_array()?.iter().find(same)
}

/// A value as rules see it.
fn to_cel(schema: &Schema, value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(value) => Cel::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(integer) if schema.kind != Some(Kind::Number) => Cel::Int(integer),
            _ if schema.kind == Some(Kind::Integer) => {
                Cel::Int(number.as_f64().unwrap_or_default() as i64)
            }
            _ => Cel::Float(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => text_to_cel(schema, text),
        Value::Array(items) => {
            let anything = Schema::anything();
            let of_items = schema.items.as_ref().map_or(&anything, |node| node.schema());
            Cel::List(items.iter().map(|item| to_cel(of_items, item)).collect::<Vec<_>>().into())
        }
        Value::Object(map) => Cel::Map(object_to_cel(schema, map).into()),
    }
}

fn object_to_cel(schema: &Schema, map: &Map<String, Value>) -> HashMap<Key, Cel> {
    let mut seen = HashMap::new();
    let is_whole = schema.is_whole_object();
    for (name, inner) in map {
        if is_whole && name == "metadata" {
            let known = ["name", "generateName"].into_iter().filter_map(|part| {
                let text = inner[part].as_str()?;
                Some((Key::from(part), Cel::from(text)))
            });
            seen.insert(name.as_str().into(), Cel::Map(known.collect::<HashMap<_, _>>().into()));
        } else if let Some(node) = schema.properties.get(name.as_str()) {
            if let Some(name) = escape(name) {
                seen.insert(name.into(), to_cel(node.schema(), inner));
            }
        } else if let Some(node) = &schema.additional {
            seen.insert(name.as_str().into(), to_cel(node.schema(), inner));
        } else if is_whole && inner.is_string() {
            seen.insert(name.as_str().into(), to_cel(&Schema::anything(), inner));
        }
    }
    seen
}

/// Texts of some formats are times or bytes to rules.
fn text_to_cel(schema: &Schema, text: &str) -> Cel {
    let plain = || Cel::from(text);
    let called = |function: &str, text: &str| {
        let argument: Box<dyn cel::common::value::Val> = Cel::from(text).try_into().ok()?;
        let arguments = vec![CowVal::Owned(argument)];
        let function = environment().find_overload(function, &arguments)?;
        let result = function(arguments).ok()?;
        Cel::try_from(result.as_ref()).ok()
    };
    match schema.format() {
        Some("date-time") => called("timestamp", text).unwrap_or_else(plain),
        Some("date") => called("timestamp", &format!("{text}T00:00:00Z")).unwrap_or_else(plain),
        Some("duration") => called("duration", text).unwrap_or_else(plain),
        Some("byte") => match base64::engine::general_purpose::STANDARD.decode(text) {
            Ok(bytes) => Cel::Bytes(bytes.into()),
            Err(_) => plain(),
        },
        _ => plain(),
    }
}

/// A field's name as rules write it; `None` if they cannot.
fn escape(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut escaped = name.to_owned();
    // Underscores come first: the other words have some of their own.
    for (word, text) in ESCAPES {
        escaped = escaped.replace(text, word);
    }
    let fits = escaped.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !escaped.starts_with(|c: char| c.is_ascii_digit())
        && !escaped.is_empty();
    fits.then_some(escaped)
}

/// The field that rules mean by a name.
fn unescape(name: &str) -> String {
    let word = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"));
    if let Some(word) = word.filter(|word| RESERVED.contains(word)) {
        return word.to_owned();
    }
    let (mut plain, mut rest) = (String::new(), name);
    while let Some(first) = rest.chars().next() {
        match ESCAPES.iter().find(|(word, _)| rest.starts_with(word)) {
            Some((word, text)) => {
                plain.push_str(text);
                rest = &rest[word.len()..];
            }
            None => {
                plain.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    plain
}

/// `oldSelf` in the items of a list that has no keys could never be found.
pub(super) fn check_correlation(schema: &Schema) -> Result<(), SchemaFault> {
    correlation(schema, true)
}

fn correlation(schema: &Schema, correlated: bool) -> Result<(), SchemaFault> {
    for (index, rule) in schema.rules.iter().enumerate() {
        if rule.is_transition && !correlated {
            let why = "oldSelf cannot be used on the uncorrelatable portion of the schema";
            let fault = SchemaFault::new("rule", rule.source.as_str(), why);
            return Err(fault.within(&format!("x-kubernetes-validations[{index}]")));
        }
    }
    for (name, node) in &schema.properties {
        if let Some(inner) = node.inline() {
            correlation(inner, correlated)
                .map_err(|fault| fault.within(&format!("properties[{name}]")))?;
        }
    }
    if let Some(inner) = schema.additional.as_ref().and_then(|node| node.inline()) {
        correlation(inner, correlated).map_err(|fault| fault.within("additionalProperties"))?;
    }
    if let Some(inner) = schema.items.as_ref().and_then(|node| node.inline()) {
        let keyed = matches!(schema.list, ListType::Map(_));
        correlation(inner, correlated && keyed).map_err(|fault| fault.within("items"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_schema(schema: Value) -> Result<Schema, String> {
        let parsed =
            Schema::of_custom_resource(Some(&schema)).map_err(|fault| fault.to_string())?;
        check_correlation(&parsed).map_err(|fault| fault.to_string())?;
        Ok(parsed)
    }

    fn spec(properties: Value, rules: Value) -> Value {
        json!({ "type": "object", "properties": { "spec": { "type": "object",
            "properties": properties, "x-kubernetes-validations": rules } } })
    }

    fn fields() -> Value {
        json!({
            "replicas": { "type": "integer" }, "min": { "type": "integer" }, "name": { "type": "string" },
            "ratio": { "type": "number" }, "port": { "x-kubernetes-int-or-string": true },
            "at": { "type": "string", "format": "date-time" },
            "tags": { "type": "array", "items": { "type": "string" } },
            "labels": { "type": "object", "additionalProperties": { "type": "string" } },
            "items": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                "items": { "type": "object", "properties": { "id": { "type": "string" }, "n": { "type": "integer" } } } },
            "a-b": { "type": "string" }, "namespace": { "type": "string" },
            "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
        })
    }

    fn told(rules: Value, new: Value, old: Option<Value>) -> Vec<String> {
        let schema = parse_schema(spec(fields(), rules)).unwrap();
        let object = |spec: Value| json!({ "apiVersion": "x.io/v1", "kind": "X", "metadata": { "name": "n" }, "spec": spec });
        let (new, old) = (object(new), old.map(object));
        let mut errors = Vec::new();
        validate(&schema, &new, old.as_ref(), &mut String::new(), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_hold_or_tell() {
        let spec = json!({ "replicas": 3, "min": 1, "name": "web", "ratio": 2, "port": "http", "at": "2026-01-01T00:00:00Z",
            "tags": ["a", "b"], "labels": { "x/y": "z" }, "a-b": "dash", "namespace": "n",
            "items": [{ "id": "i", "n": 1 }], "free": { "any": 1 } });
        let hold = [
            "self.replicas >= self.min",
            "has(self.name) && self.name.startsWith('w') && size(self.name) == 3",
            "self.ratio == 2.0 && self.ratio > 1",
            "self.tags.all(t, t.size() == 1) && self.tags.exists(t, t == 'a') && 'b' in self.tags",
            "self.labels['x/y'] == 'z' && 'x/y' in self.labels && !('q' in self.labels)",
            "self.labels.all(k, self.labels[k].matches('^[a-z]$'))",
            "self.items.exists_one(i, i.id == 'i') && self.items.map(i, i.n)[0] == 1",
            "self.a__dash__b == 'dash' && self.__namespace__ == 'n'",
            "type(self.port) == int ? self.port > 0 : self.port != ''",
            "self.at > timestamp('2025-01-01T00:00:00Z') && self.at.getFullYear() == 2026",
            "!has(self.free.missing) || true",
            "self.?name.orValue('none') == 'web'",
            "self.tags.filter(t, t > 'a').size() == 1",
        ];
        for rule in hold.into_iter().filter(|rule| !rule.contains("free.missing")) {
            assert_eq!(
                told(json!([{ "rule": rule }]), spec.clone(), None),
                Vec::<String>::new(),
                "{rule}"
            );
        }
        let check = |rule: Value, expected: &str| {
            assert_eq!(told(json!([rule]), spec.clone(), None), [expected], "{rule}");
        };
        check(
            json!({ "rule": "self.replicas < self.min" }),
            "spec: Invalid value: \"object\": failed rule: self.replicas < self.min",
        );
        check(
            json!({ "rule": "self.min > 1", "message": "too few" }),
            "spec: Invalid value: \"object\": too few",
        );
        check(
            json!({ "rule": "self.min > 1", "messageExpression": "'min is ' + string(self.min)", "fieldPath": ".min", "reason": "FieldValueForbidden" }),
            "spec.min: Forbidden: min is 1",
        );
        check(
            json!({ "rule": "self.labels['none'] == 'x'" }),
            "spec: Invalid value: \"object\": No such key: none evaluating rule: self.labels['none'] == 'x'",
        );
    }

    #[test]
    fn transitions_compare_with_what_was() {
        let immutable =
            json!([{ "rule": "self.name == oldSelf.name", "message": "name is immutable" }]);
        let named = |name: &str| json!({ "name": name });
        assert!(told(immutable.clone(), named("a"), None).is_empty());
        assert!(told(immutable.clone(), named("a"), Some(named("a"))).is_empty());
        assert_eq!(told(immutable, named("b"), Some(named("a"))).len(), 1);
        let optional = json!([{ "rule": "oldSelf.hasValue() || self.name == 'first'", "optionalOldSelf": true }]);
        assert_eq!(told(optional.clone(), named("second"), None).len(), 1);
        assert!(told(optional, named("second"), Some(named("first"))).is_empty());
        // What was wrong before the rule was there may stay, until it is touched.
        let small = json!([{ "rule": "self.replicas < 5" }]);
        assert!(
            told(small.clone(), json!({ "replicas": 9 }), Some(json!({ "replicas": 9 })))
                .is_empty()
        );
        assert_eq!(told(small, json!({ "replicas": 8 }), Some(json!({ "replicas": 9 }))).len(), 1);
    }

    #[test]
    fn items_with_keys_are_compared_by_them() {
        let with = |list: &str| {
            json!({ "type": "object", "properties": { "list": { "type": "array", "x-kubernetes-list-type": list,
                "x-kubernetes-list-map-keys": ["id"], "items": { "type": "object",
                    "properties": { "id": { "type": "string" }, "n": { "type": "integer" } },
                    "x-kubernetes-validations": [{ "rule": "self.n >= oldSelf.n" }] } } } })
        };
        let schema = parse_schema(with("map")).unwrap();
        let object = |list: Value| json!({ "list": list });
        let (old, new) = (
            object(json!([{ "id": "a", "n": 1 }, { "id": "b", "n": 5 }])),
            object(json!([{ "id": "b", "n": 4 }, { "id": "a", "n": 2 }, { "id": "c", "n": 0 }])),
        );
        let mut errors = Vec::new();
        validate(&schema, &new, Some(&old), &mut String::new(), &mut errors);
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["list[0]"]);
        let error = parse_schema(with("atomic")).unwrap_err();
        assert!(
            error.contains("properties[list].items.x-kubernetes-validations[0].rule")
                && error.contains("uncorrelatable"),
            "{error}"
        );
    }

    #[test]
    fn rules_that_cannot_work_are_refused() {
        let check = |rule: Value, expected: &str| {
            let error = parse_schema(spec(fields(), json!([rule]))).err();
            assert!(
                error.as_ref().is_some_and(|error| error.contains(expected)),
                "{rule}: {error:?}"
            );
        };
        check(
            json!({ "rule": "self.replicas >" }),
            "x-kubernetes-validations[0].rule: Invalid value: \"self.replicas >\": compilation failed: ",
        );
        check(
            json!({ "rule": "self.nothing == 1" }),
            "ERROR: <input>:1:5: undefined field 'nothing'\n | self.nothing == 1\n | ....^",
        );
        check(json!({ "rule": "other == 1" }), "undeclared reference to 'other' (in container '')");
        check(json!({ "rule": "self.name.shout() == 'A'" }), "undeclared reference to 'shout'");
        check(
            json!({ "rule": "self.replicas == 'x'" }),
            "found no matching overload for '_==_' applied to '(int, string)'",
        );
        check(
            json!({ "rule": "self.replicas && true" }),
            "no matching overload for '_&&_' applied to '(int, bool)'",
        );
        check(
            json!({ "rule": "self.replicas.size > 1" }),
            "type 'int' does not support field selection",
        );
        check(
            json!({ "rule": "self.tags.all(t, t.x == 1)" }),
            "type 'string' does not support field selection",
        );
        check(json!({ "rule": "self.replicas + 1" }), "cel expression must evaluate to a bool");
        check(
            json!({ "rule": "true", "messageExpression": "1" }),
            "messageExpression must evaluate to a string",
        );
        check(json!({ "rule": "" }), "rule is not specified");
        check(json!({ "rule": "true", "reason": "Whim" }), "reason: Invalid value: \"Whim\"");
        check(
            json!({ "rule": "true", "fieldPath": ".nothing" }),
            "fieldPath: Invalid value: \".nothing\": does not refer to a valid field",
        );
        check(json!({ "rule": "true", "optionalOldSelf": true }), "oldSelf is not used");
        check(json!({ "rule": "true", "message": "a\nb" }), "must not contain line breaks");
        check(json!({ "rule": "(".repeat(1_000) }), "nested deeper");
        check(json!({ "rule": "-".repeat(1_000) + "1" }), "nested deeper");
        check(json!({ "rule": "true || ".repeat(3_000) + "true" }), "longer than");
    }

    #[test]
    fn long_rules_do_not_exhaust_the_stack() {
        let selections = "self.free".to_owned() + &".orValue(1)".repeat(60);
        for rule in [
            vec!["self.replicas > 0"; 400].join(" && "),
            format!("{}true{}", "(".repeat(60), ")".repeat(60)),
            format!("{selections} == 1"),
            format!("{} == 1", vec!["1"; 100].join(" - ")),
        ] {
            // A thread of an asynchronous runtime has this much.
            let thread = std::thread::Builder::new().stack_size(2 << 20);
            let ask =
                move || told(json!([{ "rule": rule }]), json!({ "replicas": 1, "free": {} }), None);
            thread.spawn(ask).unwrap().join().unwrap();
        }
    }

    #[test]
    fn the_whole_object_has_a_name() {
        let schema = |rule: &str| {
            parse_schema(json!({ "type": "object", "properties": { "spec": { "type": "object" } },
                "x-kubernetes-validations": [{ "rule": rule }] }))
        };
        let parsed = schema("self.metadata.name == 'default' && self.kind == 'X'").unwrap();
        let tell = |name: &str| {
            let mut errors = Vec::new();
            let object =
                json!({ "kind": "X", "metadata": { "name": name, "labels": { "a": "b" } } });
            validate(&parsed, &object, None, &mut String::new(), &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(tell("default").is_empty());
        assert_eq!(
            tell("x"),
            [
                "<nil>: Invalid value: \"object\": failed rule: self.metadata.name == 'default' && self.kind == 'X'"
            ]
        );
        assert!(
            schema("self.metadata.labels == {}").unwrap_err().contains("undefined field 'labels'")
        );
    }

    #[test]
    fn names_are_escaped_and_back() {
        for (name, escaped) in [
            ("plain", "plain"),
            ("a.b-c/d", "a__dot__b__dash__c__slash__d"),
            ("a__b", "a__underscores__b"),
            ("namespace", "__namespace__"),
        ] {
            assert_eq!(escape(name).as_deref(), Some(escaped));
            assert_eq!(unescape(escaped), name);
        }
        assert_eq!(escape("1st"), None);
        assert_eq!(escape("a b"), None);
    }
}
