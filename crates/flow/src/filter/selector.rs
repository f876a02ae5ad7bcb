//! Selectors of labels, as `kubectl -l` takes them, with an optional source before a key:
//! `k8s:app=web`, `app in (web, db)`, `!reserved:host`.

/// Requirements that must all be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    /// Empty is any.
    source: String,
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    /// Holds where the label is absent too, as in Kubernetes.
    NotIn(Vec<String>),
}

impl Selector {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parts = split(text)?;
        parts.into_iter().map(Requirement::parse).collect::<Result<_, _>>().map(Self)
    }

    /// `labels` are `source:key=value`, or `key=value`.
    pub(super) fn matches(&self, labels: &[String]) -> bool {
        self.0.iter().all(|requirement| requirement.is_met(labels))
    }
}

/// The requirements, separated by commas that are not inside parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (index, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).ok_or("a ) has no (")?,
            ',' if depth == 0 => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err("a ( has no )".to_owned());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

impl Requirement {
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(key) = text.strip_prefix('!') {
            return Self::new(key, Test::Absent);
        }
        if let Some((key, value)) = text.split_once("!=") {
            return Self::new(key, Test::NotIn(vec![self::value(value)?]));
        }
        if let Some((key, value)) = text.split_once('=') {
            let value = value.strip_prefix('=').unwrap_or(value);
            return Self::new(key, Test::In(vec![self::value(value)?]));
        }
        let mut words = text.splitn(2, char::is_whitespace);
        let key = words.next().unwrap_or_default();
        let rest = words.next().unwrap_or_default().trim();
        if let Some(list) = rest.strip_prefix("notin") {
            return Self::new(key, Test::NotIn(values(list)?));
        }
        if let Some(list) = rest.strip_prefix("in") {
            return Self::new(key, Test::In(values(list)?));
        }
        if !rest.is_empty() {
            return Err(format!("{rest:?} is neither in (…) nor notin (…)"));
        }
        Self::new(key, Test::Exists)
    }

    fn new(key: &str, test: Test) -> Result<Self, String> {
        let (source, key) = key.trim().split_once(':').unwrap_or(("", key.trim()));
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if key.is_empty() || !key.chars().all(allowed) {
            return Err(format!("{key:?} is no key of a label"));
        }
        let source = if source == "any" { "" } else { source };
        Ok(Self { source: source.to_owned(), key: key.to_owned(), test })
    }

    fn is_met(&self, labels: &[String]) -> bool {
        let found = labels.iter().find_map(|label| self.value(label));
        match &self.test {
            Test::Exists => found.is_some(),
            Test::Absent => found.is_none(),
            Test::In(values) => found.is_some_and(|found| values.iter().any(|v| v == found)),
            Test::NotIn(values) => found.is_none_or(|found| values.iter().all(|v| v != found)),
        }
    }

    /// The value of a label, if it is the one that is asked for.
    fn value<'a>(&self, label: &'a str) -> Option<&'a str> {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        let (source, key) = name.split_once(':').unwrap_or(("", name));
        (key == self.key && (self.source.is_empty() || self.source == source)).then_some(value)
    }
}

fn value(text: &str) -> Result<String, String> {
    let text = text.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.chars().all(allowed) {
        return Err(format!("{text:?} is no value of a label"));
    }
    Ok(text.to_owned())
}

fn values(list: &str) -> Result<Vec<String>, String> {
    let inner = list.trim().strip_prefix('(').and_then(|list| list.strip_suffix(')'));
    inner.ok_or("values are written in parentheses")?.split(',').map(value).collect()
}
