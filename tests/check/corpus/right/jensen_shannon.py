import torch
import torch.nn.functional as F


def generalized(student_logits, teacher_logits, beta):
    student, teacher = F.log_softmax(student_logits, -1), F.log_softmax(teacher_logits, -1)
    if beta == 0:
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    if beta == 1:
        return F.kl_div(teacher, student, reduction="none", log_target=True).sum(-1)
    mixture = torch.logaddexp(student + torch.log1p(-beta), teacher + torch.log(beta))
    one = F.kl_div(mixture, teacher, reduction="none", log_target=True)
    other = F.kl_div(mixture, student, reduction="none", log_target=True)
    return (beta * one + (1 - beta) * other).sum(-1)
