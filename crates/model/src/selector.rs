//! Selectors: which sets of labels are meant.
//!
//! A selector is a list of requirements, all of which must hold; the empty list selects everything.
//! Texts are shared, for a cluster has many selectors of few words.

use std::fmt;
use std::sync::Arc;

use crate::label::{Label, Labels, SOURCE_ANY, SOURCE_K8S};

/// Which sets of labels are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelSelector {
    requirements: Box<[Requirement]>,
}

/// One condition on a set of labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    /// Who must have said so; `None` is anybody.
    pub source: Option<Arc<str>>,
    /// Key of the label.
    pub key: Arc<str>,
    /// What is asked of it.
    pub operator: Operator,
}

/// What is asked of a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// It is there, with one of these values.
    In(Box<[Arc<str>]>),
    /// It is not there, or with none of these values.
    NotIn(Box<[Arc<str>]>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Requirement {
    /// A requirement on the key as it is written in selectors: `key`, `any:key` or `source:key`.
    pub fn new(key: &str, operator: Operator) -> Self {
        let (source, key) = match key.split_once(':') {
            Some((SOURCE_ANY | "", key)) => (None, key),
            Some((source, key)) => (Some(Arc::from(source)), key),
            None => (None, key),
        };
        Self { source, key: Arc::from(key), operator }
    }

    /// The label `key` has this value.
    pub fn equals(key: &str, value: &str) -> Self {
        Self::new(key, Operator::In([Arc::from(value)].into()))
    }

    /// Whether the requirement speaks of this key, said by `source` or by anybody.
    pub fn is_about(&self, source: &str, key: &str) -> bool {
        *self.key == *key && self.source.as_deref().is_none_or(|own| own == source)
    }

    /// Whether the labels fulfil it.
    pub fn matches(&self, labels: &Labels) -> bool {
        let mut named = labels.iter().filter(|label| self.names(label));
        match &self.operator {
            Operator::In(values) => named.any(|label| contains(values, &label.value)),
            Operator::NotIn(values) => !named.any(|label| contains(values, &label.value)),
            Operator::Exists => named.next().is_some(),
            Operator::DoesNotExist => named.next().is_none(),
        }
    }

    fn names(&self, label: &Label) -> bool {
        label.key == *self.key && self.source.as_deref().is_none_or(|source| source == label.source)
    }
}

fn contains(values: &[Arc<str>], value: &str) -> bool {
    values.iter().any(|one| **one == *value)
}

impl LabelSelector {
    /// A selector of these requirements, in an order of its own: equal conditions make equal
    /// selectors.
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        for requirement in &mut requirements {
            if let Operator::In(values) | Operator::NotIn(values) = &mut requirement.operator {
                values.sort();
            }
        }
        requirements.sort();
        requirements.dedup();
        Self { requirements: requirements.into() }
    }

    /// The requirements.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// This selector with one requirement more.
    #[must_use]
    pub fn and(&self, requirement: Requirement) -> Self {
        let mut requirements = self.requirements.to_vec();
        requirements.push(requirement);
        Self::new(requirements)
    }

    /// Whether the labels fulfil all requirements.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.first_unmet(labels).is_none()
    }

    /// The first requirement that the labels do not fulfil.
    pub fn first_unmet(&self, labels: &Labels) -> Option<&Requirement> {
        self.requirements.iter().find(|requirement| !requirement.matches(labels))
    }

    /// Whether a requirement speaks of this key, said by `source` or by anybody.
    pub fn is_about(&self, source: &str, key: &str) -> bool {
        self.requirements.iter().any(|requirement| requirement.is_about(source, key))
    }

    /// The values that the Kubernetes label `key` must be one of, where that is required.
    pub fn k8s_values(&self, key: &str) -> Option<&[Arc<str>]> {
        self.requirements.iter().find_map(|requirement| match &requirement.operator {
            Operator::In(values) if requirement.is_about(SOURCE_K8S, key) => Some(&**values),
            _ => None,
        })
    }
}

impl FromIterator<Requirement> for LabelSelector {
    fn from_iter<I: IntoIterator<Item = Requirement>>(requirements: I) -> Self {
        Self::new(requirements.into_iter().collect())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = fmt::from_fn(|f| match &self.source {
            Some(source) => write!(f, "{source}:{}", self.key),
            None => f.write_str(&self.key),
        });
        match &self.operator {
            Operator::In(values) if values.len() == 1 => match &*values[0] {
                "" => write!(f, "{key}"),
                value => write!(f, "{key}={value}"),
            },
            Operator::In(values) => write!(f, "{key} in ({})", values.join(",")),
            Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(",")),
            Operator::Exists => write!(f, "{key} exists"),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

/// Requirements with commas between; `{}` where there are none.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("{}");
        }
        for (index, requirement) in self.requirements.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(texts: &[&str]) -> Labels {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn values(texts: &[&str]) -> Box<[Arc<str>]> {
        texts.iter().map(|text| Arc::from(*text)).collect()
    }

    #[track_caller]
    fn check(requirement: &Requirement, set: &[&str], matches: bool) {
        assert_eq!(requirement.matches(&labels(set)), matches, "{requirement} of {set:?}");
    }

    #[test]
    fn requirements_hold_or_not() {
        let set = ["k8s:app=web", "cni:tier=front"];
        check(&Requirement::equals("app", "web"), &set, true);
        check(&Requirement::equals("any:app", "web"), &set, true);
        check(&Requirement::equals("k8s:app", "web"), &set, true);
        check(&Requirement::equals("cni:app", "web"), &set, false);
        check(&Requirement::equals("app", "db"), &set, false);
        check(&Requirement::new("tier", Operator::Exists), &set, true);
        check(&Requirement::new("k8s:tier", Operator::Exists), &set, false);
        check(&Requirement::new("k8s:tier", Operator::DoesNotExist), &set, true);
        check(&Requirement::new("app", Operator::NotIn(values(&["db"]))), &set, true);
        check(&Requirement::new("app", Operator::NotIn(values(&["db", "web"]))), &set, false);
        check(&Requirement::new("zone", Operator::NotIn(values(&["a"]))), &set, true);
    }

    #[test]
    fn equal_conditions_make_equal_selectors() {
        let one = LabelSelector::new(vec![
            Requirement::new("b", Operator::In(values(&["2", "1"]))),
            Requirement::equals("a", "1"),
        ]);
        let other = LabelSelector::new(vec![
            Requirement::equals("a", "1"),
            Requirement::new("b", Operator::In(values(&["1", "2"]))),
            Requirement::equals("a", "1"),
        ]);
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "a=1,b in (1,2)");
        assert_eq!(LabelSelector::default().to_string(), "{}");
        assert!(LabelSelector::default().matches(&Labels::new()));
    }

    #[test]
    fn the_unmet_requirement_is_named() {
        let selector: LabelSelector =
            [Requirement::equals("app", "web"), Requirement::equals("tier", "front")]
                .into_iter()
                .collect();
        let unmet = selector.first_unmet(&labels(&["k8s:app=web"])).unwrap();
        assert_eq!(unmet.to_string(), "tier=front");
    }
}
