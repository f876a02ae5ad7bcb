//! A field of a manifest, and where it is: what the languages are read with.
//!
//! Reading does not stop at the first mistake. A [`Field`] writes what is wrong into [`Errors`] and
//! gives nothing, so that an author sees all mistakes at once; a policy with any is refused.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::FieldError;

/// What is wrong with a manifest.
#[derive(Debug, Default)]
pub(super) struct Errors(RefCell<Vec<FieldError>>);

impl Errors {
    /// Notes a mistake.
    pub(super) fn add(&self, path: impl Into<String>, reason: impl Into<String>) {
        self.0.borrow_mut().push(FieldError { path: path.into(), reason: reason.into() });
    }

    /// The mistakes, in the order in which they were found.
    pub(super) fn into_vec(self) -> Vec<FieldError> {
        self.0.into_inner()
    }
}

/// A value of a manifest and its path.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    path: String,
    value: &'a Value,
    errors: &'a Errors,
}

impl<'a> Field<'a> {
    /// The value at this path; where it is null, the field is absent.
    pub(super) fn new(path: &str, value: &'a Value, errors: &'a Errors) -> Option<Self> {
        (!value.is_null()).then(|| Self { path: path.to_owned(), value, errors })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Notes that this field is wrong.
    pub(super) fn wrong<T>(&self, reason: impl Into<String>) -> Option<T> {
        self.errors.add(&*self.path, reason);
        None
    }

    fn wrong_type<T>(&self, expected: &str) -> Option<T> {
        let found = match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.wrong(format!("must be {expected}, not {found}"))
    }

    /// The fields within, of which these are known.
    pub(super) fn object(&self, known: &[&str]) -> Option<Object<'a>> {
        let Value::Object(fields) = self.value else { return self.wrong_type("an object") };
        for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
            let path = format!("{}.{name}", self.path);
            self.errors.add(path, format!("unknown field; known are {}", known.join(", ")));
        }
        Some(Object { path: self.path.clone(), fields, errors: self.errors })
    }

    /// The items of a list.
    pub(super) fn list(&self) -> Option<Vec<Self>> {
        let Value::Array(items) = self.value else { return self.wrong_type("a list") };
        Some(items.iter().enumerate().map(|(index, value)| self.item(index, value)).collect())
    }

    fn item(&self, index: usize, value: &'a Value) -> Self {
        Self { path: format!("{}[{index}]", self.path), value, errors: self.errors }
    }

    /// The items of a list that has at most this many.
    pub(super) fn list_up_to(&self, length_max: usize) -> Option<Vec<Self>> {
        let items = self.list()?;
        if items.len() > length_max {
            return self
                .wrong(format!("has {} items; at most {length_max} are allowed", items.len()));
        }
        Some(items)
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        self.value.as_str().or_else(|| self.wrong_type("a string"))
    }

    pub(super) fn flag(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong_type("a boolean"))
    }

    /// A whole number in a range, both ends included.
    pub(super) fn number(&self, least: i64, greatest: i64) -> Option<i64> {
        let Some(number) = self.value.as_i64() else { return self.wrong_type("a whole number") };
        if !(least..=greatest).contains(&number) {
            return self.wrong(format!("{number} is not in the range {least} to {greatest}"));
        }
        Some(number)
    }

    pub(super) fn is_number(&self) -> bool {
        self.value.is_number()
    }

    /// A map of texts.
    pub(super) fn texts(&self) -> Option<Vec<(&'a str, &'a str)>> {
        let Value::Object(fields) = self.value else { return self.wrong_type("an object") };
        let entries = fields.iter().map(|(name, value)| {
            let path = format!("{}[{name}]", self.path);
            let text = Field { path, value, errors: self.errors }.text()?;
            Some((name.as_str(), text))
        });
        // All are looked at, so that all mistakes are named.
        entries.collect::<Vec<_>>().into_iter().collect()
    }
}

/// Reads every item, so that all mistakes are named; gives nothing if one has any.
pub(super) fn read_all<'a, T>(
    items: Vec<Field<'a>>,
    read: impl FnMut(Field<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    items.into_iter().map(read).collect::<Vec<_>>().into_iter().collect()
}

/// The fields of an object.
#[derive(Clone, Debug)]
pub(super) struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
    errors: &'a Errors,
}

impl<'a> Object<'a> {
    /// A field that is there and not null.
    pub(super) fn field(&self, name: &str) -> Option<Field<'a>> {
        Field::new(&format!("{}.{name}", self.path), self.fields.get(name)?, self.errors)
    }

    /// A field that must be there.
    pub(super) fn required(&self, name: &str) -> Option<Field<'a>> {
        self.field(name).or_else(|| {
            self.errors.add(format!("{}.{name}", self.path), "is required");
            None
        })
    }

    /// Whether a field is there and is not null, an empty list or an empty object.
    pub(super) fn says(&self, name: &str) -> bool {
        match self.fields.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Object(fields)) => !fields.is_empty(),
            Some(_) => true,
        }
    }

    /// Whether a field is there and is not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// Which of these fields are there.
    pub(super) fn present<'b>(&self, names: &[&'b str]) -> BTreeSet<&'b str> {
        names.iter().copied().filter(|name| self.has(name)).collect()
    }

    /// Notes that the object is wrong as a whole.
    pub(super) fn wrong<T>(&self, reason: impl Into<String>) -> Option<T> {
        self.errors.add(&*self.path, reason);
        None
    }
}
