//! Whether a rule fits its schema: fields that are not there, functions that nobody declares,
//! operators on values that never match.
//!
//! The interpreter finds such faults when it meets a value; whoever writes a definition is to
//! be told at once, as by the real API server. What the schema leaves open is of type `Dyn`
//! and fits everywhere.

use cel::IdedExpr;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators as op,
};

use super::super::schema::{Kind, Schema};
use super::functions::{self, DECLARED};

/// What is known about the value of an expression.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ty<'a> {
    Dyn,
    Null,
    Bool,
    Int,
    UInt,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    /// A list of anything.
    List,
    /// A map of anything.
    Map,
    Opaque(&'static str),
    /// An object, map or list as a schema describes it.
    Schema(&'a Schema),
    /// What rules see of an object's metadata.
    Metadata,
}

/// Where a rule is wrong (as an expression's number), and how.
pub(super) type Fault = (u64, String);

impl<'a> Ty<'a> {
    pub(super) fn of(schema: &'a Schema) -> Self {
        if schema.int_or_string {
            return Self::Dyn;
        }
        match schema.kind {
            None => Self::Dyn,
            Some(Kind::Boolean) => Self::Bool,
            Some(Kind::Integer) => Self::Int,
            Some(Kind::Number) => Self::Double,
            Some(Kind::String) => match schema.format() {
                Some("date-time" | "date") => Self::Timestamp,
                Some("duration") => Self::Duration,
                Some("byte") => Self::Bytes,
                _ => Self::String,
            },
            Some(Kind::Object | Kind::Array) => Self::Schema(schema),
        }
    }

    /// As the messages of CEL call it; `None` for what may be anything.
    fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::Dyn | Self::Null => return None,
            Self::Bool => "bool",
            Self::Int => "int",
            Self::UInt => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Timestamp => "timestamp",
            Self::Duration => "duration",
            Self::List => "list",
            Self::Map => "map",
            Self::Opaque(name) => name,
            Self::Metadata => "object",
            Self::Schema(schema) => match schema.kind {
                Some(Kind::Array) => "list",
                _ if schema.additional.is_some() => "map",
                _ => "object",
            },
        })
    }

    /// Whether a value of one could be one of the other.
    fn meets(self, other: Self) -> bool {
        match (self.name(), other.name()) {
            (Some("map" | "object"), Some("map" | "object")) => true,
            (Some(a), Some(b)) => a == b,
            _ => true,
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::UInt | Self::Double)
    }
}

/// The variables that an expression sees, the innermost last.
pub(super) struct Scope<'a> {
    variables: Vec<(String, Ty<'a>)>,
}

/// Functions of CEL itself and of its extension for strings, with what they give.
const STANDARD: &[(&str, Ty<'static>)] = &[
    ("size", Ty::Int),
    ("contains", Ty::Bool),
    ("startsWith", Ty::Bool),
    ("endsWith", Ty::Bool),
    ("matches", Ty::Bool),
    ("int", Ty::Int),
    ("uint", Ty::UInt),
    ("double", Ty::Double),
    ("string", Ty::String),
    ("bytes", Ty::Bytes),
    ("bool", Ty::Bool),
    ("type", Ty::Dyn),
    ("dyn", Ty::Dyn),
    ("duration", Ty::Duration),
    ("timestamp", Ty::Timestamp),
    ("getFullYear", Ty::Int),
    ("getMonth", Ty::Int),
    ("getDate", Ty::Int),
    ("getDayOfMonth", Ty::Int),
    ("getDayOfWeek", Ty::Int),
    ("getDayOfYear", Ty::Int),
    ("getHours", Ty::Int),
    ("getMinutes", Ty::Int),
    ("getSeconds", Ty::Int),
    ("getMilliseconds", Ty::Int),
    ("charAt", Ty::String),
    ("indexOf", Ty::Int),
    ("lastIndexOf", Ty::Int),
    ("join", Ty::String),
    ("lowerAscii", Ty::String),
    ("upperAscii", Ty::String),
    ("trim", Ty::String),
    ("replace", Ty::String),
    ("split", Ty::List),
    ("substring", Ty::String),
    ("format", Ty::String),
    ("reverse", Ty::String),
    ("strings.quote", Ty::String),
    ("optional.of", Ty::Dyn),
    ("optional.ofNonZeroValue", Ty::Dyn),
    ("optional.none", Ty::Dyn),
    ("hasValue", Ty::Bool),
    ("value", Ty::Dyn),
    ("or", Ty::Dyn),
    ("orValue", Ty::Dyn),
    (op::OPT_SELECT, Ty::Dyn),
    (op::OPT_INDEX, Ty::Dyn),
    (op::NOT_STRICTLY_FALSE, Ty::Bool),
];

/// Names that stand for types.
const TYPE_NAMES: &[&str] =
    &["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];

impl<'a> Scope<'a> {
    pub(super) fn new(variables: Vec<(String, Ty<'a>)>) -> Self {
        Self { variables }
    }

    pub(super) fn check(&mut self, expression: &IdedExpr) -> Result<Ty<'a>, Fault> {
        let id = expression.id;
        match &expression.expr {
            Expr::Unspecified => Ok(Ty::Dyn),
            Expr::Literal(literal) => Ok(match literal {
                LiteralValue::Boolean(_) => Ty::Bool,
                LiteralValue::Bytes(_) => Ty::Bytes,
                LiteralValue::Double(_) => Ty::Double,
                LiteralValue::Int(_) => Ty::Int,
                LiteralValue::Null => Ty::Null,
                LiteralValue::String(_) => Ty::String,
                LiteralValue::UInt(_) => Ty::UInt,
            }),
            Expr::Ident(name) => self.variable(name).ok_or_else(|| undeclared(id, name)),
            Expr::Select(select) => {
                if let Expr::Ident(name) = &select.operand.expr
                    && self.variable(name).is_none()
                    && functions::is_type_name(&format!("{name}.{}", select.field))
                {
                    return Ok(Ty::Dyn);
                }
                let of = self.check(&select.operand)?;
                let found = field(of, &select.field).map_err(|why| (id, why))?;
                Ok(if select.test { Ty::Bool } else { found })
            }
            Expr::List(list) => {
                list.elements.iter().try_for_each(|one| self.check(one).map(drop))?;
                Ok(Ty::List)
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    self.check_entry(&entry.expr)?;
                }
                Ok(Ty::Map)
            }
            Expr::Struct(of) => Err(undeclared(id, &of.type_name)),
            Expr::Comprehension(inner) => self.check_comprehension(inner),
            Expr::Call(call) => self.check_call(id, call),
        }
    }

    fn variable(&self, name: &str) -> Option<Ty<'a>> {
        let found = self.variables.iter().rev().find(|(one, _)| one == name);
        found.map(|(_, ty)| *ty).or_else(|| TYPE_NAMES.contains(&name).then_some(Ty::Dyn))
    }

    fn check_entry(&mut self, entry: &EntryExpr) -> Result<(), Fault> {
        match entry {
            EntryExpr::StructField(field) => self.check(&field.value).map(drop),
            EntryExpr::MapEntry(entry) => {
                self.check(&entry.key)?;
                self.check(&entry.value).map(drop)
            }
        }
    }

    /// What `all`, `exists`, `map` and the like are made into.
    fn check_comprehension(&mut self, inner: &ComprehensionExpr) -> Result<Ty<'a>, Fault> {
        let range = self.check(&inner.iter_range)?;
        let (first, second) = match range {
            Ty::Schema(schema) => match (&schema.items, &schema.additional) {
                (Some(items), _) => (Ty::of(items.schema()), Ty::of(items.schema())),
                (None, Some(values)) => (Ty::String, Ty::of(values.schema())),
                (None, None) => (Ty::Dyn, Ty::Dyn),
            },
            _ => (Ty::Dyn, Ty::Dyn),
        };
        let accumulated = self.check(&inner.accu_init)?;
        let depth = self.variables.len();
        self.variables.push((inner.accu_var.clone(), accumulated));
        self.variables.push((inner.iter_var.clone(), first));
        if let Some(name) = &inner.iter_var2 {
            self.variables.push((name.clone(), second));
        }
        let steps = [&inner.loop_cond, &inner.loop_step];
        let checked = steps.into_iter().try_for_each(|step| self.check(step).map(drop));
        let result = checked.and_then(|()| self.check(&inner.result));
        self.variables.truncate(depth);
        result
    }

    fn check_call(&mut self, id: u64, call: &CallExpr) -> Result<Ty<'a>, Fault> {
        let name = call.func_name.as_str();
        // A function in a namespace looks like one that is called on a variable.
        let namespaced = match call.target.as_deref().map(|target| &target.expr) {
            Some(Expr::Ident(target)) if !self.variables.iter().any(|(one, _)| one == target) => {
                Some(format!("{target}.{name}"))
            }
            _ => None,
        };
        let mut arguments = Vec::new();
        if let Some(target) = call.target.as_deref().filter(|_| namespaced.is_none()) {
            arguments.push(self.check(target)?);
        }
        if [op::OPT_SELECT, op::OPT_INDEX].contains(&name) {
            // The field may be missing: that is what the operator is for.
            return call.args[..1.min(call.args.len())]
                .iter()
                .try_for_each(|one| self.check(one).map(drop))
                .map(|()| Ty::Dyn);
        }
        for argument in &call.args {
            arguments.push(self.check(argument)?);
        }
        if let Some(result) = operator(name, &arguments) {
            return result.map_err(|()| (id, no_overload(name, &arguments)));
        }
        let wanted = namespaced.as_deref().unwrap_or(name);
        let is_member = call.target.is_some() && namespaced.is_none();
        let declared = DECLARED.iter().filter(|one| one.name == wanted && one.member == is_member);
        let mut results = declared.map(|one| one.result);
        match (results.next(), STANDARD.iter().find(|(one, _)| *one == wanted)) {
            (Some(_), Some(_)) => Ok(Ty::Dyn),
            (Some(result), None) => Ok(result),
            (None, Some((_, result))) => Ok(*result),
            (None, None) => Err(undeclared(id, wanted)),
        }
    }
}

/// Levels of an expression.
pub(super) fn depth(expression: &IdedExpr) -> usize {
    let deepest = |inner: &mut dyn Iterator<Item = &IdedExpr>| inner.map(depth).max().unwrap_or(0);
    1 + match &expression.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => 0,
        Expr::Select(select) => depth(&select.operand),
        Expr::List(list) => deepest(&mut list.elements.iter()),
        Expr::Call(call) => deepest(&mut call.target.as_deref().into_iter().chain(&call.args)),
        Expr::Comprehension(c) => {
            let parts = [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result];
            deepest(&mut parts.into_iter())
        }
        Expr::Map(map) => {
            map.entries.iter().map(|entry| entry_depth(&entry.expr)).max().unwrap_or(0)
        }
        Expr::Struct(of) => {
            of.entries.iter().map(|entry| entry_depth(&entry.expr)).max().unwrap_or(0)
        }
    }
}

fn entry_depth(entry: &EntryExpr) -> usize {
    match entry {
        EntryExpr::StructField(field) => depth(&field.value),
        EntryExpr::MapEntry(entry) => depth(&entry.key).max(depth(&entry.value)),
    }
}

fn undeclared(id: u64, name: &str) -> Fault {
    (id, format!("undeclared reference to '{name}' (in container '')"))
}

fn no_overload(name: &str, arguments: &[Ty<'_>]) -> String {
    let types: Vec<&str> = arguments.iter().map(|ty| ty.name().unwrap_or("dyn")).collect();
    format!("found no matching overload for '{name}' applied to '({})'", types.join(", "))
}

/// The type of a field.
fn field<'a>(of: Ty<'a>, name: &str) -> Result<Ty<'a>, String> {
    let undefined = || format!("undefined field '{name}'");
    match of {
        Ty::Metadata if ["name", "generateName"].contains(&name) => Ok(Ty::String),
        Ty::Metadata => Err(undefined()),
        Ty::Schema(schema) => {
            if let Some(values) = &schema.additional {
                return Ok(Ty::of(values.schema()));
            }
            if schema.kind == Some(Kind::Array) {
                return Err("type 'list' does not support field selection".to_owned());
            }
            let property = super::unescape(name);
            match property.as_str() {
                "metadata" if schema.is_whole_object() => return Ok(Ty::Metadata),
                "apiVersion" | "kind" if schema.is_whole_object() => return Ok(Ty::String),
                _ => {}
            }
            schema
                .properties
                .get(property.as_str())
                .map(|node| Ty::of(node.schema()))
                .ok_or_else(undefined)
        }
        Ty::Dyn | Ty::Null | Ty::Map => Ok(Ty::Dyn),
        other => Err(format!(
            "type '{}' does not support field selection",
            other.name().unwrap_or("dyn")
        )),
    }
}

/// What an operator gives; `None` if `name` is none, `Err` if it does not take these.
fn operator<'a>(name: &str, arguments: &[Ty<'a>]) -> Option<Result<Ty<'a>, ()>> {
    let is_bool = |ty: &Ty<'_>| matches!(ty, Ty::Bool | Ty::Dyn);
    let fits = |fits: bool, ty: Ty<'a>| if fits { Ok(ty) } else { Err(()) };
    Some(match (name, arguments) {
        (op::LOGICAL_AND | op::LOGICAL_OR | op::LOGICAL_NOT, all) => {
            fits(all.iter().all(is_bool), Ty::Bool)
        }
        (op::EQUALS | op::NOT_EQUALS, [a, b]) => fits(a.meets(*b), Ty::Bool),
        (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [a, b]) => {
            fits(a.meets(*b) || (a.is_number() && b.is_number()), Ty::Bool)
        }
        (op::IN, [_, b]) => fits(matches!(b.name(), None | Some("list" | "map")), Ty::Bool),
        (op::CONDITIONAL, [condition, a, b]) => {
            fits(is_bool(condition) && a.meets(*b), if a.name().is_some() { *a } else { *b })
        }
        (op::ADD | op::SUBSTRACT, [a, b]) => match (a, b) {
            (Ty::Timestamp | Ty::Duration, Ty::Timestamp | Ty::Duration) => Ok(Ty::Dyn),
            (a, b) if a.meets(*b) => Ok(if a.name().is_some() { *a } else { *b }),
            _ => Err(()),
        },
        (op::MULTIPLY | op::DIVIDE | op::MODULO, [a, b]) => {
            let number = |ty: &Ty<'_>| ty.is_number() || ty.name().is_none();
            fits(number(a) && number(b) && a.meets(*b), if a.name().is_some() { *a } else { *b })
        }
        (op::NEGATE, [a]) => fits(a.is_number() || a.name().is_none(), *a),
        (op::INDEX, [Ty::Schema(schema), _]) => {
            let inner = schema.items.as_ref().or(schema.additional.as_ref());
            inner.map(|node| Ty::of(node.schema())).ok_or(())
        }
        (op::INDEX, [a, _]) => fits(matches!(a.name(), None | Some("list" | "map")), Ty::Dyn),
        _ => return None,
    })
}
