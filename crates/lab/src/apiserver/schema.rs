//! Schemas of objects, of Kubernetes' own types and of custom resources alike.
//!
//! One tree serves decoding (types, unknown fields), defaults, validation, and the
//! merging of patches and applied configurations, which need to know which lists
//! are keyed by what. Kubernetes' own types come from `core-schema.json`, made by
//! `crates/lab/schema-gen`; those of custom resources from their definition.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use regex::Regex;
use serde_json::{Map, Value, json};

use super::status::{Fault, FieldError};
use super::validations::{self, Rule};

/// The schemas of Kubernetes' own types, as OpenAPI v3 component schemas.
pub(super) const CORE_SCHEMA: &str = include_str!("core-schema.json");
/// The metadata of every object.
pub(super) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What is known about a value.
#[derive(Debug, Default)]
pub struct Schema {
    /// `None`: of any type.
    pub kind: Option<Kind>,
    pub int_or_string: bool,
    /// An amount: kept as text, though it may be sent as a number.
    quantity: bool,
    pub nullable: bool,
    pub preserve_unknown: bool,
    pub embedded_resource: bool,
    pub properties: BTreeMap<Box<str>, Node>,
    pub additional: Option<Node>,
    pub items: Option<Node>,
    pub required: Vec<Box<str>>,
    pub default: Option<Value>,
    pub list: ListType,
    /// The object is owned and replaced as a whole.
    pub atomic_map: bool,
    /// Key of the list under a strategic merge patch.
    pub patch_merge_key: Option<Box<str>>,
    /// A strategic merge patch merges this list instead of replacing it.
    pub patch_merges: bool,
    checks: Option<Box<Checks>>,
    /// What `x-kubernetes-validations` demands of the value as a whole.
    pub(super) rules: Vec<Rule>,
    /// There are such rules here, or further down.
    rules_below: bool,
    /// A custom resource: with metadata, though its own schema may not name it.
    whole: bool,
}

/// Where a schema is wrong, and how.
#[derive(Debug)]
pub(super) struct SchemaFault {
    pub path: String,
    pub value: Value,
    pub why: String,
}

impl SchemaFault {
    pub(super) fn new(field: &str, value: impl Into<Value>, why: impl Into<String>) -> Self {
        Self { path: field.to_owned(), value: value.into(), why: why.into() }
    }

    /// The same fault, seen from one step further out.
    pub(super) fn within(mut self, step: &str) -> Self {
        self.path = format!("{step}.{}", self.path);
        self
    }
}

impl std::fmt::Display for SchemaFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: Invalid value: {}: {}", self.path, self.value, self.why)
    }
}

/// A schema within a schema.
#[derive(Clone, Debug)]
pub enum Node {
    Inline(Arc<Schema>),
    /// One of Kubernetes' own types; these may be recursive.
    Core(Box<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// How the items of a list are told apart when lists are merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<Box<str>>),
}

/// Restrictions of values beyond their type.
#[derive(Debug, Default)]
struct Checks {
    one_of_values: Vec<Value>,
    pattern: Option<(String, Regex)>,
    format: Option<Box<str>>,
    minimum: Option<(f64, bool)>,
    maximum: Option<(f64, bool)>,
    multiple_of: Option<f64>,
    length_min: Option<u64>,
    length_max: Option<u64>,
    items_min: Option<u64>,
    items_max: Option<u64>,
    unique_items: bool,
    properties_min: Option<u64>,
    properties_max: Option<u64>,
    all_of: Vec<Node>,
    any_of: Vec<Node>,
    one_of: Vec<Node>,
    not: Option<Node>,
}

impl Node {
    pub fn schema(&self) -> &Schema {
        match self {
            Self::Inline(schema) => schema,
            Self::Core(name) => core(name),
        }
    }

    /// The schema, unless it is one of Kubernetes' own types.
    pub(super) fn inline(&self) -> Option<&Schema> {
        match self {
            Self::Inline(schema) => Some(schema),
            Self::Core(_) => None,
        }
    }
}

/// The schema of one of Kubernetes' own types, by its full name.
pub(super) fn core(name: &str) -> &'static Schema {
    static CORE: OnceLock<BTreeMap<Box<str>, Schema>> = OnceLock::new();
    static ANYTHING: Schema = Schema::anything();
    let all = CORE.get_or_init(|| {
        let definitions: BTreeMap<Box<str>, Value> =
            serde_json::from_str(CORE_SCHEMA).expect("core-schema.json is our own");
        let parse = |(name, json): (Box<str>, Value)| {
            let mut schema = Schema::parse(&json).expect("core-schema.json has schemas");
            schema.quantity = name.ends_with(".Quantity");
            (name, schema.of_core_type())
        };
        definitions.into_iter().map(parse).collect()
    });
    all.get(name).unwrap_or(&ANYTHING)
}

impl Schema {
    /// Accepts and keeps everything.
    pub const fn anything() -> Self {
        Self {
            kind: None,
            int_or_string: false,
            quantity: false,
            nullable: true,
            preserve_unknown: true,
            embedded_resource: false,
            properties: BTreeMap::new(),
            additional: None,
            items: None,
            required: Vec::new(),
            default: None,
            list: ListType::Atomic,
            atomic_map: false,
            patch_merge_key: None,
            patch_merges: false,
            checks: None,
            rules: Vec::new(),
            rules_below: false,
            whole: false,
        }
    }

    pub(super) fn has_rules_below(&self) -> bool {
        self.rules_below
    }

    /// A custom resource, or another whole object within one.
    pub(super) fn is_whole_object(&self) -> bool {
        self.whole || self.embedded_resource
    }

    /// `format`, of texts and numbers.
    pub(super) fn format(&self) -> Option<&str> {
        self.checks.as_ref()?.format.as_deref()
    }

    /// Reads an OpenAPI v3 schema with Kubernetes' extensions. The error says what is wrong where.
    pub(super) fn parse(json: &Value) -> Result<Self, SchemaFault> {
        Self::parse_as(json, false)
    }

    /// `whole`: of a custom resource, which has metadata though the schema may not say so.
    fn parse_as(json: &Value, whole: bool) -> Result<Self, SchemaFault> {
        let flag = |name: &str| json[name].as_bool().unwrap_or(false);
        let mut schema = Self {
            kind: match json["type"].as_str() {
                None | Some("") => None,
                Some(name) => Some(Kind::parse(name).ok_or_else(|| {
                    SchemaFault::new("type", name, "supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"")
                })?),
            },
            int_or_string: flag("x-kubernetes-int-or-string"),
            nullable: flag("nullable"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag("x-kubernetes-embedded-resource"),
            default: json.get("default").cloned(),
            atomic_map: json["x-kubernetes-map-type"] == "atomic",
            patch_merge_key: json["x-kubernetes-patch-merge-key"].as_str().map(Box::from),
            patch_merges: json["x-kubernetes-patch-strategy"]
                .as_str()
                .is_some_and(|strategies| strategies.split(',').any(|one| one == "merge")),
            required: strings(&json["required"]),
            whole,
            ..Self::default()
        };
        schema.list = match json["x-kubernetes-list-type"].as_str() {
            Some("map") => ListType::Map(strings(&json["x-kubernetes-list-map-keys"])),
            Some("set") => ListType::Set,
            _ => ListType::Atomic,
        };
        for (name, property) in json["properties"].as_object().into_iter().flatten() {
            let node =
                Node::parse(property).map_err(|e| e.within(&format!("properties[{name}]")))?;
            schema.properties.insert(name.as_str().into(), node);
        }
        match &json["additionalProperties"] {
            Value::Null | Value::Bool(false) => {}
            Value::Bool(true) => schema.additional = Some(Node::Inline(Self::anything().into())),
            inner => {
                let node = Node::parse(inner).map_err(|e| e.within("additionalProperties"))?;
                schema.additional = Some(node);
            }
        }
        if !json["items"].is_null() {
            schema.items = Some(Node::parse(&json["items"]).map_err(|e| e.within("items"))?);
        }
        schema.checks = Checks::parse(json)?.map(Box::new);
        let rules = &json["x-kubernetes-validations"];
        if rules.is_array() {
            schema.rules = validations::parse(rules, &schema)?;
        }
        let children = schema.properties.values().chain(&schema.additional).chain(&schema.items);
        schema.rules_below = !schema.rules.is_empty()
            || children.filter_map(Node::inline).any(Self::has_rules_below);
        Ok(schema)
    }

    /// Kubernetes' own types: objects of which no fields are known may hold anything.
    fn of_core_type(mut self) -> Self {
        let opaque = self.kind == Some(Kind::Object)
            && self.properties.is_empty()
            && self.additional.is_none();
        if opaque || (self.kind.is_none() && !self.int_or_string) {
            self.preserve_unknown = true;
        }
        self
    }

    /// The schema of a whole custom resource: its own, with the metadata that all objects have.
    pub(super) fn of_custom_resource(json: Option<&Value>) -> Result<Self, SchemaFault> {
        let parse = |json| Self::parse_as(json, true);
        let mut schema = json.map_or_else(|| Ok(Self::anything()), parse)?;
        schema.kind = Some(Kind::Object);
        schema.add_object_fields();
        Ok(schema)
    }

    fn add_object_fields(&mut self) {
        let text = || Node::Inline(Arc::new(Self { kind: Some(Kind::String), ..Self::default() }));
        self.properties.insert("apiVersion".into(), text());
        self.properties.insert("kind".into(), text());
        self.properties.insert("metadata".into(), Node::Core(OBJECT_META.into()));
    }

    /// The schema of a field or map entry, when there is one.
    pub fn child(&self, name: &str) -> Option<&Self> {
        if let Some(node) = self.properties.get(name) {
            return Some(node.schema());
        }
        if self.embedded_resource && name == "metadata" {
            return Some(core(OBJECT_META));
        }
        self.additional.as_ref().map(Node::schema)
    }

    fn knows(&self, name: &str) -> bool {
        self.preserve_unknown
            || self.properties.contains_key(name)
            || self.additional.is_some()
            || (self.embedded_resource && matches!(name, "apiVersion" | "kind" | "metadata"))
    }

    /// Removes fields that the schema does not know and reports their paths.
    pub fn prune(&self, value: &mut Value) -> Vec<String> {
        let mut unknown = Vec::new();
        self.prune_at(value, &mut String::new(), &mut unknown);
        unknown
    }

    fn prune_at(&self, value: &mut Value, path: &mut String, unknown: &mut Vec<String>) {
        match value {
            Value::Object(map) if self.kind.is_none_or(|kind| kind == Kind::Object) => {
                map.retain(|name, _| {
                    let known = self.knows(name);
                    if !known {
                        unknown.push(join(path, name));
                    }
                    known
                });
                for (name, inner) in map {
                    if let Some(child) = self.child(name) {
                        within(path, name, |path| child.prune_at(inner, path, unknown));
                    }
                }
            }
            Value::Array(items) => {
                let Some(child) = &self.items else { return };
                for (index, inner) in items.iter_mut().enumerate() {
                    at_index(path, index, |path| child.schema().prune_at(inner, path, unknown));
                }
            }
            _ => {}
        }
    }

    /// Fills in defaults. A null that may not be is taken for absent where there is a default.
    pub fn fill_defaults(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (name, node) in &self.properties {
                    let child = node.schema();
                    let Some(default) = &child.default else { continue };
                    match map.get(&**name) {
                        None => {}
                        Some(Value::Null) if !child.nullable => {}
                        Some(_) => continue,
                    }
                    map.insert(String::from(&**name), default.clone());
                }
                for (name, inner) in map {
                    if let Some(child) = self.child(name) {
                        child.fill_defaults(inner);
                    }
                }
            }
            Value::Array(items) => {
                let Some(child) = &self.items else { return };
                for inner in items {
                    child.schema().fill_defaults(inner);
                }
            }
            _ => {}
        }
    }

    /// Brings Kubernetes' own types into the form in which they are kept: nulls are absent
    /// fields, and amounts are text.
    pub(super) fn normalise(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|name, inner| {
                    let any = |child: &Self| child.kind.is_none() && !child.int_or_string;
                    !inner.is_null() || self.child(name).is_some_and(any)
                });
                for (name, inner) in map {
                    if let Some(child) = self.child(name) {
                        child.normalise(inner);
                    }
                }
            }
            Value::Array(items) => {
                let Some(child) = &self.items else { return };
                for inner in items {
                    child.schema().normalise(inner);
                }
            }
            Value::Number(number) if self.quantity => *value = Value::String(number.to_string()),
            _ => {}
        }
    }

    /// Everything that is wrong with a custom resource.
    pub fn validate(&self, value: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.validate_at(value, &mut String::new(), true, &mut errors);
        errors
    }

    /// Everything that is wrong with a custom resource that replaces `old`, the validation rules
    /// included; these are not asked about what cannot be read.
    pub fn validate_with_rules(&self, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = self.validate(value);
        if !self.rules_below {
            return errors;
        }
        let blocking = |error: &FieldError| {
            !matches!(error.fault, Fault::Invalid(_) | Fault::Forbidden | Fault::Duplicate(_))
        };
        if errors.iter().any(blocking) {
            let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(FieldError::invalid("", Value::Null, why));
        } else {
            validations::validate(self, value, old, &mut String::new(), &mut errors);
        }
        errors
    }

    /// Values of the wrong type only: what makes an object of Kubernetes' own types unreadable.
    pub fn validate_types(&self, value: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.validate_at(value, &mut String::new(), false, &mut errors);
        errors
    }

    fn validate_at(
        &self,
        value: &Value,
        path: &mut String,
        strictly: bool,
        errors: &mut Vec<FieldError>,
    ) {
        // Nulls in Kubernetes' own types are absent fields, but a list has no absent items.
        let absent = !strictly && !path.ends_with(']');
        if value.is_null() && (self.nullable || absent) {
            return;
        }
        if let Some(wanted) = self.type_fault(value) {
            let got = type_name(value);
            let place = if path.is_empty() { "body" } else { path.as_str() };
            let detail = format!("{place} in body must be of type {wanted}: \"{got}\"");
            errors.push(FieldError { field: path.clone(), fault: Fault::Type(json!(got)), detail });
            return;
        }
        match value {
            Value::Object(map) => {
                if strictly {
                    for name in &self.required {
                        if !map.contains_key(&**name) {
                            errors.push(FieldError::required(join(path, name), ""));
                        }
                    }
                }
                for (name, inner) in map {
                    // Metadata has rules of its own.
                    let strictly = strictly && !(path.is_empty() && name == "metadata");
                    if let Some(child) = self.child(name) {
                        within(path, name, |path| child.validate_at(inner, path, strictly, errors));
                    }
                }
            }
            Value::Array(items) => {
                if let Some(child) = &self.items {
                    for (index, inner) in items.iter().enumerate() {
                        at_index(path, index, |path| {
                            child.schema().validate_at(inner, path, strictly, errors);
                        });
                    }
                }
                if strictly {
                    self.list_duplicates(items, path, errors);
                }
            }
            _ => {}
        }
        if let Some(checks) = &self.checks
            && strictly
        {
            checks.validate(value, path, errors);
        }
    }

    fn type_fault(&self, value: &Value) -> Option<&'static str> {
        if self.int_or_string {
            let number =
                if self.quantity { value.is_number() } else { value.is_i64() || value.is_u64() };
            return (!number && !value.is_string()).then_some("integer,string");
        }
        let kind = self.kind?;
        let fits = match kind {
            Kind::Object => value.is_object(),
            Kind::Array => value.is_array(),
            Kind::String => value.is_string(),
            Kind::Integer => {
                value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
            }
            Kind::Number => value.is_number(),
            Kind::Boolean => value.is_boolean(),
        };
        (!fits).then_some(kind.name())
    }

    fn list_duplicates(&self, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
        let identity = |item: &Value| match &self.list {
            ListType::Atomic => None,
            ListType::Set => Some(item.clone()),
            ListType::Map(keys) => {
                Some(keys.iter().map(|key| (String::from(&**key), item[&**key].clone())).collect())
            }
        };
        let mut seen = std::collections::HashSet::new();
        for (index, item) in items.iter().enumerate() {
            if let Some(identity) = identity(item)
                && !seen.insert(identity.to_string())
            {
                errors.push(FieldError::duplicate(format!("{path}[{index}]"), identity));
            }
        }
    }
}

impl Node {
    fn parse(json: &Value) -> Result<Self, SchemaFault> {
        if let Some(reference) = json["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap_or_default();
            return Ok(Self::Core(name.into()));
        }
        let schema = Schema::parse(json)?;
        Ok(Self::Inline(Arc::new(schema)))
    }
}

impl Kind {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

impl Checks {
    fn parse(json: &Value) -> Result<Option<Self>, SchemaFault> {
        const NAMES: &[&str] = &[
            "enum",
            "pattern",
            "format",
            "minimum",
            "maximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "uniqueItems",
            "minProperties",
            "maxProperties",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
        ];
        if !NAMES.iter().any(|name| json.get(name).is_some()) {
            return Ok(None);
        }
        let nodes = |name: &str| -> Result<Vec<Node>, SchemaFault> {
            let alternatives = json[name].as_array().into_iter().flatten().enumerate();
            alternatives
                .map(|(i, one)| Node::parse(one).map_err(|e| e.within(&format!("{name}[{i}]"))))
                .collect()
        };
        let bound = |name: &str, exclusive: &str| {
            json[name].as_f64().map(|bound| (bound, json[exclusive].as_bool().unwrap_or(false)))
        };
        let pattern = match json["pattern"].as_str().filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => {
                let regex = Regex::new(text).map_err(|e| {
                    let why = format!("must be a valid regular expression, but isn't: {e}");
                    SchemaFault::new("pattern", text, why)
                })?;
                Some((text.to_owned(), regex))
            }
        };
        Ok(Some(Self {
            one_of_values: json["enum"].as_array().cloned().unwrap_or_default(),
            pattern,
            format: json["format"].as_str().map(Box::from),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: json["multipleOf"].as_f64(),
            length_min: json["minLength"].as_u64(),
            length_max: json["maxLength"].as_u64(),
            items_min: json["minItems"].as_u64(),
            items_max: json["maxItems"].as_u64(),
            unique_items: json["uniqueItems"].as_bool().unwrap_or(false),
            properties_min: json["minProperties"].as_u64(),
            properties_max: json["maxProperties"].as_u64(),
            all_of: nodes("allOf")?,
            any_of: nodes("anyOf")?,
            one_of: nodes("oneOf")?,
            not: match json.get("not") {
                Some(inner) => Some(Node::parse(inner).map_err(|e| e.within("not"))?),
                None => None,
            },
        }))
    }

    fn validate(&self, value: &Value, path: &mut String, errors: &mut Vec<FieldError>) {
        let mut wrong = |detail: String| {
            errors.push(FieldError::invalid(
                path.clone(),
                value.clone(),
                format!("{path} in body {detail}"),
            ));
        };
        match value {
            Value::Number(number) => {
                self.validate_number(number.as_f64().unwrap_or_default(), &mut wrong);
            }
            Value::String(text) => self.validate_text(text, &mut wrong),
            Value::Array(items) => {
                let len = items.len() as u64;
                if self.items_min.is_some_and(|min| len < min) {
                    wrong(format!("should have at least {} items", self.items_min.unwrap_or(0)));
                }
                if self.items_max.is_some_and(|max| len > max) {
                    wrong(format!("should have at most {} items", self.items_max.unwrap_or(0)));
                }
                let mut seen = std::collections::HashSet::new();
                if self.unique_items && !items.iter().all(|item| seen.insert(item.to_string())) {
                    wrong("shouldn't contain duplicates".into());
                }
            }
            Value::Object(map) => {
                let len = map.len() as u64;
                if self.properties_min.is_some_and(|min| len < min) {
                    wrong(format!(
                        "should have at least {} properties",
                        self.properties_min.unwrap_or(0)
                    ));
                }
                if self.properties_max.is_some_and(|max| len > max) {
                    wrong(format!(
                        "should have at most {} properties",
                        self.properties_max.unwrap_or(0)
                    ));
                }
            }
            _ => {}
        }
        if !self.one_of_values.is_empty() && !self.one_of_values.contains(value) {
            let supported: Vec<String> = self
                .one_of_values
                .iter()
                .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
                .collect();
            let supported: Vec<&str> = supported.iter().map(String::as_str).collect();
            errors.push(FieldError::not_supported(path.clone(), value.clone(), &supported));
        }
        self.validate_junctors(value, path, errors);
    }

    fn validate_number(&self, number: f64, wrong: &mut dyn FnMut(String)) {
        if let Some((bound, exclusive)) = self.minimum
            && (number < bound || (exclusive && number <= bound))
        {
            let or_equal = if exclusive { "" } else { " or equal to" };
            wrong(format!("should be greater than{or_equal} {bound}"));
        }
        if let Some((bound, exclusive)) = self.maximum
            && (number > bound || (exclusive && number >= bound))
        {
            let or_equal = if exclusive { "" } else { " or equal to" };
            wrong(format!("should be less than{or_equal} {bound}"));
        }
        if let Some(step) = self.multiple_of
            && step != 0.0
            && (number / step).fract() != 0.0
        {
            wrong(format!("should be a multiple of {step}"));
        }
        let range = match self.format.as_deref() {
            Some("int32") => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
            _ => None,
        };
        if range.is_some_and(|(lower, upper)| number < lower || number > upper) {
            wrong("must be of type int32".into());
        }
    }

    fn validate_text(&self, text: &str, wrong: &mut dyn FnMut(String)) {
        let len = text.chars().count() as u64;
        if self.length_min.is_some_and(|min| len < min) {
            wrong(format!("should be at least {} chars long", self.length_min.unwrap_or(0)));
        }
        if self.length_max.is_some_and(|max| len > max) {
            wrong(format!("should be at most {} chars long", self.length_max.unwrap_or(0)));
        }
        if let Some((source, regex)) = &self.pattern
            && !regex.is_match(text)
        {
            wrong(format!("should match '{source}'"));
        }
        let Some(format) = self.format.as_deref() else { return };
        let fits = match format {
            "date-time" => text.parse::<k8s_openapi::jiff::Timestamp>().is_ok(),
            "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
            "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
            "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
            _ => true,
        };
        if !fits {
            wrong(format!("must be of type {format}: {}", json!(text)));
        }
    }

    fn validate_junctors(&self, value: &Value, path: &mut String, errors: &mut Vec<FieldError>) {
        let mut fits = |node: &Node| {
            let mut inner = Vec::new();
            node.schema().validate_at(value, path, true, &mut inner);
            inner.is_empty()
        };
        let any = self.any_of.is_empty() || self.any_of.iter().any(&mut fits);
        let one = self.one_of.iter().filter(|node| fits(node)).count();
        let negated = self.not.as_ref().is_some_and(&mut fits);
        let mut wrong = |rule: &str| {
            let detail = format!("{path} in body {rule}");
            errors.push(FieldError::invalid(path.clone(), value.clone(), detail));
        };
        if !any {
            wrong("must validate at least one schema (anyOf)");
        }
        if !self.one_of.is_empty() && one != 1 {
            wrong("must validate one and only one schema (oneOf)");
        }
        if negated {
            wrong("must not validate the schema (not)");
        }
        for node in &self.all_of {
            node.schema().validate_at(value, path, true, errors);
        }
    }
}

/// The path of field `name` within `path`.
fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else if name.contains(['.', '/']) {
        format!("{path}[{name}]")
    } else {
        format!("{path}.{name}")
    }
}

pub(super) fn within(path: &mut String, name: &str, visit: impl FnOnce(&mut String)) {
    let len = path.len();
    *path = join(path, name);
    visit(path);
    path.truncate(len);
}

pub(super) fn at_index(path: &mut String, index: usize, visit: impl FnOnce(&mut String)) {
    let len = path.len();
    path.push_str(&format!("[{index}]"));
    visit(path);
    path.truncate(len);
}

fn strings(value: &Value) -> Vec<Box<str>> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(Box::from).collect()
}

/// The type of a value in the words of schemas.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The map of an object that may be absent; made if it is not there.
pub(super) fn object_at<'a>(value: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !value[name].is_object() {
        value[name] = json!({});
    }
    value[name].as_object_mut().expect("just made")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schema() -> Schema {
        Schema::of_custom_resource(Some(&json!({
            "type": "object",
            "required": ["spec"],
            "properties": { "spec": {
                "type": "object",
                "required": ["size"],
                "properties": {
                    "size": { "type": "integer", "format": "int32", "minimum": 1, "maximum": 10, "multipleOf": 2 },
                    "color": { "type": "string", "enum": ["red", "green"], "default": "red" },
                    "name": { "type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4, "nullable": true },
                    "address": { "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] },
                    "port": { "x-kubernetes-int-or-string": true },
                    "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                    "labels": { "type": "object", "additionalProperties": { "type": "string" } },
                    "template": { "type": "object", "x-kubernetes-embedded-resource": true, "properties": {} },
                    "nested": { "type": "object", "default": {}, "properties": { "deep": { "type": "integer", "default": 7 } } },
                    "items": { "type": "array", "maxItems": 2, "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["id"],
                        "items": { "type": "object", "required": ["id"], "properties": { "id": { "type": "integer" } } } },
                },
            } },
        })))
        .unwrap()
    }

    /// Fields that are wrong; none for a valid object.
    fn check(spec: Value, expected: &[&str]) {
        let errors = schema().validate(&json!({ "spec": spec }));
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, expected, "{spec}: {errors:?}");
    }

    #[test]
    fn validation() {
        check(json!({ "size": 2 }), &[]);
        check(json!({}), &["spec.size"]);
        check(json!({ "size": "2" }), &["spec.size"]);
        check(json!({ "size": 12 }), &["spec.size"]);
        check(json!({ "size": 3 }), &["spec.size"]);
        check(json!({ "size": 2.0 }), &[]);
        check(json!({ "size": 2, "color": "blue" }), &["spec.color"]);
        check(json!({ "size": 2, "name": "A" }), &["spec.name", "spec.name"]);
        check(json!({ "size": 2, "name": null }), &[]);
        check(json!({ "size": 2, "color": null }), &["spec.color"]);
        check(json!({ "size": 2, "address": "10.0.0.1" }), &[]);
        check(json!({ "size": 2, "address": "fd00::1" }), &[]);
        check(json!({ "size": 2, "address": "nowhere" }), &["spec.address"]);
        check(json!({ "size": 2, "port": "http" }), &[]);
        check(json!({ "size": 2, "port": 80 }), &[]);
        check(json!({ "size": 2, "port": true }), &["spec.port"]);
        check(json!({ "size": 2, "labels": { "a": 1 } }), &["spec.labels.a"]);
        check(json!({ "size": 2, "items": [{ "id": 1 }, { "id": 1 }] }), &["spec.items[1]"]);
        check(
            json!({ "size": 2, "items": [{}, { "id": 1 }, { "id": 2 }] }),
            &["spec.items[0].id", "spec.items"],
        );
        assert_eq!(schema().validate(&json!({})).len(), 1);
    }

    #[test]
    fn words_of_errors() {
        let errors =
            schema().validate(&json!({ "spec": { "size": 30, "color": "blue", "name": 1 } }));
        let words: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                r#"spec.color: Unsupported value: "blue": supported values: "red", "green""#,
                r#"spec.name: Invalid value: "integer": spec.name in body must be of type string: "integer""#,
                "spec.size: Invalid value: 30: spec.size in body should be less than or equal to 10",
            ]
        );
    }

    #[test]
    fn pruning_keeps_what_is_known() {
        let mut value = json!({
            "apiVersion": "x/v1", "kind": "X", "extra": 1,
            "metadata": { "name": "a", "bogus": 1 },
            "spec": { "size": 2, "wrong": {}, "free": { "any": { "thing": 1 } }, "labels": { "a": "b" },
                "template": { "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "odd": 1 }, "spec": {} },
                "items": [{ "id": 1, "other": 2 }] },
        });
        let mut unknown = schema().prune(&mut value);
        unknown.sort();
        assert_eq!(
            unknown,
            [
                "extra",
                "metadata.bogus",
                "spec.items[0].other",
                "spec.template.metadata.odd",
                "spec.template.spec",
                "spec.wrong",
            ]
        );
        assert_eq!(value["spec"]["free"], json!({ "any": { "thing": 1 } }));
        assert_eq!(value["spec"]["items"], json!([{ "id": 1 }]));
        assert_eq!(
            value["spec"]["template"],
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" } })
        );
    }

    #[test]
    fn defaults_reach_into_defaults() {
        let mut value = json!({ "spec": { "size": 2, "color": null } });
        schema().fill_defaults(&mut value);
        assert_eq!(
            value,
            json!({ "spec": { "size": 2, "color": "red", "nested": { "deep": 7 } } })
        );
    }

    #[test]
    fn alternatives_by_what_they_require() {
        let schema = Schema::parse(&json!({ "type": "object",
            "properties": { "cidr": { "type": "string" }, "group": { "type": "string" },
                "port": { "x-kubernetes-int-or-string": true, "anyOf": [{ "type": "integer" }, { "type": "string" }] },
                "tags": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
                "none": { "type": "object", "nullable": true, "properties": { "a": { "type": "string" } } } },
            "oneOf": [{ "properties": { "cidr": {} }, "required": ["cidr"] },
                { "properties": { "group": {} }, "required": ["group"] }] }))
        .unwrap();
        let fine = |value: Value| schema.validate(&value).is_empty();
        assert!(fine(json!({ "cidr": "c" })) && fine(json!({ "group": "g", "port": 80 })));
        assert!(!fine(json!({})) && !fine(json!({ "cidr": "c", "group": "g" })));
        assert!(
            fine(json!({ "cidr": "c", "port": "http" }))
                && !fine(json!({ "cidr": "c", "port": 1.5 }))
        );
        assert!(
            fine(json!({ "cidr": "c", "tags": ["a", "b"] }))
                && !fine(json!({ "cidr": "c", "tags": ["a", "a"] }))
        );
        assert!(fine(json!({ "cidr": "c", "none": null })) && !fine(json!({ "cidr": null })));
    }

    #[test]
    fn broken_schemas_are_refused() {
        for schema in [
            json!({ "type": "number2" }),
            json!({ "properties": { "a": { "pattern": "(" } } }),
            json!({ "items": { "anyOf": [{ "type": "x" }] } }),
        ] {
            assert!(Schema::parse(&schema).is_err(), "{schema}");
        }
    }

    #[test]
    fn core_types_know_their_fields() {
        let mut pod = json!({ "metadata": {}, "spec": { "containers": [{ "name": "a", "imagx": "b", "env": null }],
            "securityContext": { "runAsUser": 1 }, "volumes": [{ "name": "v", "configMap": { "name": "c" } }] } });
        let schema = core("io.k8s.api.core.v1.Pod");
        schema.normalise(&mut pod);
        assert_eq!(schema.prune(&mut pod), ["spec.containers[0].imagx"]);
        assert_eq!(pod["spec"]["containers"], json!([{ "name": "a" }]));
        assert!(schema.validate_types(&json!({ "spec": { "containers": "x" } })).len() == 1);
        let mut pod = json!({ "spec": { "containers": [{ "resources": { "limits": { "cpu": 0.5, "memory": 1024 } } }] } });
        schema.normalise(&mut pod);
        let limits = &pod["spec"]["containers"][0]["resources"]["limits"];
        assert_eq!(*limits, json!({ "cpu": "0.5", "memory": "1024" }));
        assert!(schema.validate_types(&json!({ "spec": { "containers": [{ "resources": { "limits": { "cpu": 1, "memory": "1Gi" } } }] } })).is_empty());
    }

    proptest! {
        /// Filling in and pruning twice is filling in and pruning once, whatever comes.
        #[test]
        fn defaults_and_pruning_are_idempotent(spec in prop::collection::btree_map("[a-z]{1,6}|size|color|nested", "[a-z]{0,3}", 0..5)) {
            let schema = schema();
            let mut once = json!({ "spec": spec });
            schema.prune(&mut once);
            schema.fill_defaults(&mut once);
            let mut twice = once.clone();
            prop_assert!(schema.prune(&mut twice).is_empty());
            schema.fill_defaults(&mut twice);
            prop_assert_eq!(once, twice);
        }
    }
}
